"""The one Jinja environment of qkv. It lives in a worker process; `qkv.inputs.template` is its only caller.

A chat template is a program by whoever uploaded the model, so it gets: a sandbox that raises at the first forbidden
attribute, plain JSON values and no objects, an output limit here, and from `serve` and its parent a memory limit and a
deadline. What it finds around it (filters, globals, whitespace rules, the `generation` tag) is what transformers gives
it (`utils/chat_template_utils.py`), so that both render the same text.
"""

import json
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, missing

from qkv.inputs.worker import serve

MAX_OUTPUT = 32 * 2**20  # characters
MAX_MEMORY = 768 * 2**20  # bytes: the interpreter, the messages and a few copies of the longest output


class _TooLongError(Exception):
    """The output, or a string on its way there, is over the limit."""


class _RefusedError(Exception):
    """The template called `raise_exception`."""


class _Undefined(Undefined):
    """As in transformers a missing name is false, empty and `is not defined`, and its attributes are errors.

    Printing it is an error too, where transformers prints nothing: a prompt with a hole is a wrong prompt. Two kinds
    of holes are in real templates on purpose: a key that a message lacks, and `bos_token` and its like.
    """

    __slots__ = ()

    def __str__(self) -> str:
        name = self._undefined_name or ""
        if self._undefined_obj is missing and not name.endswith("_token"):
            self._fail_with_undefined_error()
        return ""


class _Namespace(Namespace):
    """A namespace without underscore names, which are the way into CPython's objects (as in transformers)."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no named self: `namespace(self=…)` is valid Jinja
        self, values = args[0], dict(*args[1:], **kwargs)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace can't hold {name!r}: it begins with an underscore")
        super().__setitem__(name, value)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; rendering it is rendering its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        # jinja2 gives back an Undefined here, which prints as nothing and is false: an attack that fails unseen.
        raise jinja2.exceptions.SecurityError(f"the sandbox forbids the attribute {attribute!r}")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for some, times in ((left, right), (right, left)):
            if isinstance(some, (str, list, tuple)) and isinstance(times, int) and len(some) * times > MAX_OUTPUT:
                raise _TooLongError  # the memory limit would stop it too, where the system has one
        return super().call_binop(context, operator, left, right)


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> _Environment:
    env = _Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=_Undefined, extensions=[_Generation, loopcontrols]
    )
    env.filters["tojson"] = _to_json
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    env.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)  # not the class: no way to its attributes
    env.globals["namespace"] = _Namespace
    return env


_ENVIRONMENT = _environment()
_compile: Callable[[str], jinja2.Template] = lru_cache(maxsize=32)(_ENVIRONMENT.from_string)


def render(template: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """`{"text": …}`, or `{"failed": why, "line": n}` with the template's line where it is known."""
    try:
        pieces, size = [], 0
        for piece in _compile(template).generate(variables):
            size += len(piece)
            if size > MAX_OUTPUT:
                raise _TooLongError
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        raise
    except RecursionError as error:
        return {"failed": "it nests or calls itself too deeply", "line": _line(error)}
    except _TooLongError as error:
        return {"failed": f"its output has more than {MAX_OUTPUT:,} characters", "line": _line(error)}
    except _RefusedError as error:
        return {"failed": f"it refuses these messages: {error}", "line": _line(error)}
    except jinja2.TemplateSyntaxError as error:
        return {"failed": f"syntax error: {error.message}", "line": error.lineno}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}", "line": _line(error)}


def _line(error: BaseException) -> int | None:
    walk = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in walk if frame.f_code.co_filename == "<template>"]
    return lines[-1] if lines else None


def main() -> None:
    """Answer `{"template": …, "variables": …}` until the parent goes away."""
    serve(lambda request: render(request["template"], request["variables"]), MAX_MEMORY)
