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
    return Auto([tool.function.name for tool in tools])


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
        defined[name] = _hoist(_parameters(tool), name, defined)
        both = {"name": {"enum": [name]}, "arguments": {"$ref": f"#/$defs/{name}"}}
        items.append({"type": "object", "properties": both, "required": [*both], "additionalProperties": False})
    most = 1 if body.parallel_tool_calls is False else MOST_CALLS
    schema = {"type": "array", "minItems": 1, "maxItems": most, "items": {"anyOf": items}, "$defs": defined}
    return Grammar("json_schema", json.dumps(schema))


def _parameters(tool: Tool) -> dict[str, Any]:
    return {"type": "object", **(tool.function.parameters or {})}


def _hoist(schema: Any, name: str, defined: dict[str, Any]) -> Any:
    """A schema to stand inside another: its definitions move to the root's, and what refers to them with them."""
    if isinstance(schema, list):
        return [_hoist(item, name, defined) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key in ("$defs", "definitions") and isinstance(value, dict):
            defined.update({f"{name}:{inner}": _hoist(part, name, defined) for inner, part in value.items()})
        elif key == "$ref" and isinstance(value, str):
            inner = re.sub(r"^#/(?:\$defs|definitions)/", f"#/$defs/{name}:", value)
            out[key] = f"#/$defs/{name}" if value == "#" else inner
        else:
            out[key] = _hoist(value, name, defined)
    return out
