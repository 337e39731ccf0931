"""Tools: what an answer may call, must call, and how that is found in its text. By `tool_choice`:

- auto: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` (Hermes, Qwen, SmolLM), or a whole answer that is
  such an object or a list of them (Llama 3 writes `parameters`);
- required: a grammar makes the answer a list of calls;
- a named tool: a grammar makes the answer its arguments.
"""

import json
import re
from typing import Any

from qkv.serve.ask import Grammar
from qkv.serve.calls import Auto, Named, Parser, Plain, Required
from qkv.serve.schemas_chat import ChatRequest, NamedTool, Tool

MOST_CALLS = 16  # that a grammar lets an answer have
# In a JSON schema: what holds JSON that is no schema, and what holds schemas by names of somebody's choice.
_VALUES = frozenset({"const", "enum", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})


def offered(body: ChatRequest) -> list[Tool]:
    """The tools that this answer may call."""
    return [] if body.tool_choice == "none" else list(body.tools or ())


def parser_of(body: ChatRequest) -> Parser:
    """What finds the calls in one answer to this request."""
    tools = offered(body)
    if not tools:
        return Plain()
    if isinstance(body.tool_choice, NamedTool):
        return Named(body.tool_choice.function.name)
    if body.tool_choice == "required":
        return Required()
    return Auto([tool.function.name for tool in tools], 1 if body.parallel_tool_calls is False else None)


def grammar_of(body: ChatRequest) -> Grammar | None:
    """What makes an answer a call where one is asked for."""
    tools = offered(body)
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        (tool,) = (tool for tool in tools if tool.function.name == name)
        return Grammar("json_schema", json.dumps(_parameters(tool)))
    if body.tool_choice != "required":
        return None
    defined: dict[str, Any] = {}
    items = []
    for tool in tools:
        name = tool.function.name
        defined[name] = _moved(_parameters(tool), f"#/$defs/{name}")
        both = {"name": {"enum": [name]}, "arguments": {"$ref": f"#/$defs/{name}"}}
        items.append({"type": "object", "properties": both, "required": [*both], "additionalProperties": False})
    most = 1 if body.parallel_tool_calls is False else MOST_CALLS
    schema = {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": items}, "$defs": defined}
    return Grammar("json_schema", json.dumps(schema))


def _parameters(tool: Tool) -> dict[str, Any]:
    return {"type": "object", **(tool.function.parameters or {})}


def _moved(schema: Any, to: str) -> Any:
    """A schema to stand at `to` inside another: what refers to its root, or to a place under it, refers to that."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            found[key] = re.sub("^#(?=/|$)", to, value)
        elif key in _NAMED and isinstance(value, dict):
            found[key] = {name: _moved(one, to) for name, one in value.items()}
        elif key not in _VALUES:
            found[key] = _moved(value, to)
    return found
