"""Tools: which parser and which grammar a request gets, and what a grammar allows."""

import json
from typing import Any

import pytest

from qkv.serve.calls import Auto, Begin, Named, Plain, Required
from qkv.serve.guide import Compiler
from qkv.serve.schemas_chat import ChatRequest
from qkv.serve.tools import grammar_of, offered, parser_of
from tests.serve.conftest import tokenizer

REFS = {
    "type": "object",
    "properties": {"where": {"$ref": "#/$defs/place"}, "to": {"$ref": "#/definitions/place"}, "back": {"$ref": "#"}},
    "$defs": {"place": {"enum": ["here", "there"]}},
    "definitions": {"place": {"enum": ["up"]}},
}


def chat(**more: Any) -> ChatRequest:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in (("go", REFS), ("stay", None))
    ]
    turns = [{"role": "user", "content": "x"}]
    return ChatRequest.model_validate({"model": "m", "messages": turns, "tools": tools, **more})


NAMED = {"type": "function", "function": {"name": "go"}}


@pytest.mark.parametrize(
    ("choice", "parser", "held"),
    [
        (None, Auto, False),
        ("auto", Auto, False),
        ("none", Plain, False),
        ("required", Required, True),
        (NAMED, Named, True),
    ],
)
def test_by_the_choice(choice: Any, parser: type, held: bool) -> None:
    body = chat(tool_choice=choice)
    assert isinstance(parser_of(body), parser)
    assert (grammar_of(body) is not None) == held
    assert len(offered(body)) == (0 if choice == "none" else 2)


def test_no_tools() -> None:
    body = chat(tools=None)
    assert isinstance(parser_of(body), Plain)
    assert grammar_of(body) is None


def test_a_named_tool_s_grammar_is_its_parameters() -> None:
    grammar = grammar_of(chat(tool_choice=NAMED))
    assert grammar is not None
    assert json.loads(grammar.source) == REFS
    stay = grammar_of(chat(tool_choice={"type": "function", "function": {"name": "stay"}}))
    assert stay is not None
    assert json.loads(stay.source) == {"type": "object"}


@pytest.mark.parametrize(("parallel", "most"), [(None, 16), (True, 16), (False, 1)])
def test_required_calls(parallel: bool | None, most: int) -> None:
    grammar = grammar_of(chat(tool_choice="required", parallel_tool_calls=parallel))
    assert grammar is not None
    schema = json.loads(grammar.source)
    assert (schema["minItems"], schema["maxItems"]) == (1, most)
    go, stay = schema["items"]["anyOf"]
    assert [*go["properties"]] == ["name", "arguments"]  # the order that the parser relies on
    assert go["properties"]["name"] == {"enum": ["go"]}
    assert go["properties"]["arguments"] == {"$ref": "#/$defs/go"}
    assert stay["properties"]["arguments"] == {"$ref": "#/$defs/stay"}
    defined = schema["$defs"]
    assert defined["stay"] == {"type": "object"}
    assert defined["go"]["$defs"] == REFS["$defs"]
    where = defined["go"]["properties"]
    assert where["where"] == {"$ref": "#/$defs/go/$defs/place"}
    assert where["to"] == {"$ref": "#/$defs/go/definitions/place"}
    assert where["back"] == {"$ref": "#/$defs/go"}


@pytest.mark.parametrize(
    ("properties", "more"),
    [
        ({"where": {"$ref": "#/$defs/place"}}, {"$defs": {"place": {"enum": ["here"]}}}),
        ({"a": {"enum": [1]}, "b": {"$ref": "#/properties/a"}}, {}),
        ({"definitions": {"enum": ["x"]}, "$defs": {"enum": [2]}, "$ref": {"enum": [3]}, "enum": {"const": 4}}, {}),
        ({"enum": {"$ref": "#/$defs/place"}}, {"$defs": {"place": {"enum": ["here"]}}}),
        ({"a": {"enum": [{"$ref": "#"}]}}, {}),
        ({"a": {"anyOf": [{"$ref": "#"}, {"enum": [5]}]}}, {}),
    ],
    ids=lambda value: str([*value]),
)
def test_any_parameters_can_be_required(properties: dict[str, Any], more: dict[str, Any]) -> None:
    """What refers to a place in them finds it, and a name that is also a word of schemas is a name."""
    parameters = {"properties": properties, "required": [*properties], "additionalProperties": False, **more}
    body = chat(
        tool_choice="required", tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    )
    grammar = grammar_of(body)
    assert grammar is not None
    Compiler(tokenizer(), 400).compile(grammar)
    found = json.loads(grammar.source)["$defs"]["f"]
    assert [*found["properties"]] == [*properties]
    if "enum" in properties.get("a", {}):
        assert found["properties"]["a"] == properties["a"]


@pytest.mark.parametrize(("parallel", "count"), [(None, 2), (True, 2), (False, 1)])
def test_parallel_calls_where_the_model_chooses(parallel: bool | None, count: int) -> None:
    parser = parser_of(chat(parallel_tool_calls=parallel))
    found = [*parser.feed('[{"name": "go"}, {"name": "stay"}]'), *parser.finish()]
    assert len([one for one in found if isinstance(one, Begin)]) == count
