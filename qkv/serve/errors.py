"""Errors as an OpenAI client reads them: `{"error": {message, type, param, code}}` and a status.

A message says what is wrong with the request and nothing of the server: no path, address or traceback. What nobody
expected is in the log, under the request's id.
"""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qkv.errors import InputError, NotFound, QkvError, TemplateError, TokenizerError
from qkv.serve.ask import ContextExceeded
from qkv.serve.events import Stopped
from qkv.serve.scheduler import Full

RETRY_AFTER = 1  # seconds: a place in the queue may be free by then
_LONGEST = 600  # characters of a message
_PARAM = re.compile(r"[a-z][a-z_]*(?:\[\d+\]|\.[a-z_]+)*")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_PATH = re.compile(r"(?<![\w/:.])/(?:[\w.@+-]+/)+[\w.@+-]*")

INVALID = "invalid_request_error"
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(QkvError):
    """An answer that is an error, decided by the server itself: status, code and the field it is about."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class Gone(Exception):
    """The client has closed its connection: nobody reads the answer."""


def envelope(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(status, INVALID if status < 500 else "server_error")
    short = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
    clean = short.encode("utf-8", "replace").decode()  # a lone surrogate that a message quotes
    return {"error": {"message": clean, "type": kind, "param": param, "code": code}}


def response(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error as a response."""
    headers: Mapping[str, str] = {}
    if status in (429, 503):
        headers = {"retry-after": str(RETRY_AFTER)}
    elif status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse(envelope(status, message, param=param, code=code), status, headers=dict(headers))


def told(error: BaseException) -> tuple[int, str, str | None, str | None]:
    """(status, message, param, code) of whatever was raised. What isn't meant for clients is a bare 500."""
    match error:
        case Refused():
            return error.status, str(error), error.param, error.code
        case ContextExceeded():
            return 400, str(error), None, "context_length_exceeded"
        case Full():
            return 429, str(error), None, "queue_full"
        case Stopped():
            return 503, str(error), None, "unavailable"
        case NotFound():
            return 404, str(error), "model", "model_not_found"
        case InputError():
            return 400, str(error), param_of(str(error)), None
        case TemplateError() | TokenizerError():
            return 400, _PATH.sub("…", _ADDRESS.sub("…", str(error))), "messages", None
    return 500, "the server failed at this request; its log has the reason under the request's id", None, None


def param_of(message: str) -> str | None:
    """The field that a message is about: qkv's begin with its name."""
    first = message.split(" ", 1)[0].rstrip(":,")
    if first.startswith("grammar"):
        return "response_format"
    name = re.split(r"[\[.]", first)[0]
    return first if _PARAM.fullmatch(first) and ("_" in name or name in _FIELDS) else None


_FIELDS = {
    "temperature",
    "seed",
    "stop",
    "n",
    "prompt",
    "logprobs",
    "tools",
    "messages",
    "input",
    "documents",
    "dimensions",
    "model",
}


def respond(error: BaseException) -> JSONResponse:
    """Whatever was raised, as a response."""
    status, message, param, code = told(error)
    return response(status, message, param=param, code=code)


def install(app: FastAPI) -> None:
    """Have this application answer errors so."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        request.scope["state"]["failure"] = error
        return respond(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        message, param = _explain(error.errors())
        return response(400, message, param=param)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = {404: "there is no such route", 405: "this route has no such method"}
        return response(error.status_code, message.get(error.status_code, str(error.detail)))

    app.add_exception_handler(QkvError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _explain(errors: Any) -> tuple[str, str | None]:
    """The most telling one of pydantic's errors: of a field's several possible types the one that got farthest."""
    worst = max(errors, key=lambda e: (e["type"] == "extra_forbidden", not e["type"].endswith("_type"), len(e["loc"])))
    path = [part for part in worst["loc"] if part not in ("body", "query")]
    named = [part for part in path if isinstance(part, int) or (isinstance(part, str) and _PARAM.fullmatch(part))]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named).lstrip(".") or None
    if worst["type"] == "extra_forbidden":
        return f"{str(path[-1])[:80]!r} is not a field that this server knows here", (param or str(path[-1]))[:80]
    message = worst["msg"].removeprefix("Value error, ")
    return (message if param is None or message.startswith(param) else f"{param}: {message}"), param
