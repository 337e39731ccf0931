"""Tools: which parser and which grammar a request gets, and what a grammar allows."""

import json
from typing import Any

import pytest

from qkv.serve.calls import Auto, Named, Plain, Required
from qkv.serve.schemas_chat import ChatRequest
from qkv.serve.tools import grammar_of, offered, parser_of

REFS = {
    "type": "object",
    "properties": {"where": {"$ref": "#/$defs/place"}, "to": {"$ref": "#/definitions/place"}, "back": {"$ref": "#"}},
    "$defs": {"place": {"enum": ["here", "there"]}},
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
    assert defined["go:place"] == {"enum": ["here", "there"]}
    assert defined["go"]["properties"]["where"] == defined["go"]["properties"]["to"] == {"$ref": "#/$defs/go:place"}
    assert defined["go"]["properties"]["back"] == {"$ref": "#/$defs/go"}
