"""One line of JSON for each request, and for each step of starting up.

JSON escapes line ends and control characters, so nothing that a client sends can forge a line or colour a terminal.
What is logged are ids, counts and times: never a key, a prompt or an answer.
"""

import json
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qkv.serve.errors import Gone, respond, told

QUIET = frozenset({"/look/state", "/health", "/metrics"})  # asked for once a second; only their failures are told
_LONGEST_ID = 128  # characters of a client's own x-request-id
_LONGEST = 200  # characters of a path


class Log:
    """Writes lines to a stream (None: nowhere). `start` of the process's own clock for the start-up timeline."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.begun = time.perf_counter()

    def write(self, event: str, **fields: Any) -> None:
        """One line: when, what, and the fields that are not None."""
        if self.stream is None:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        told = {name: value for name, value in fields.items() if value is not None}
        line = json.dumps({"time": stamp, "event": event, **told}, default=str)
        with suppress(OSError, ValueError):  # whoever read it is gone: no reason to fail requests, or an engine
            self.stream.write(f"{line}\n")  # at once: engines write here too, each in a thread of its own
            self.stream.flush()

    def since(self) -> float:
        """Seconds since the log was opened."""
        return round(time.perf_counter() - self.begun, 3)

    @contextmanager
    def step(self, name: str, **fields: Any) -> Iterator[None]:
        """A step of starting up: how long it took, and how long ago the process began."""
        start = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - start, 3)
        self.write("start", step=name, seconds=seconds, since=self.since(), **fields)


class Lines(logging.Handler):
    """What libraries log (uvicorn's warnings), in the same lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line a record, with the error that it tells of and where that comes from."""
        failure = record.exc_info[1] if record.exc_info else None
        about = {"name": record.name, "level": record.levelname, "message": record.getMessage()}
        self.log.write("library", **about, **({} if failure is None else _failed(failure)))


class Requests:
    """ASGI middleware, the outermost: gives each request an id, answers what nobody else has caught, writes its line.

    Routes add to `request.state.record` what the line should say of them."""

    def __init__(self, app: ASGIApp, log: Log) -> None:
        self.app, self.log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        id = request_id(Headers(scope=scope).get("x-request-id", ""))
        record: dict[str, Any] = {}
        state = scope.setdefault("state", {})
        state.update(id=id, record=record)

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self.app(scope, receive, tell)
        except Gone:
            record["reason"] = "disconnected"
        except Exception as error:
            state["failure"] = error
            if not status:
                await respond(error)(scope, receive, tell)
        finally:
            failure = state.get("failure")
            if scope["path"] not in QUIET or status >= 400 or failure is not None:
                seconds = round(time.perf_counter() - start, 4)
                self._line(scope, id, status, seconds, record, failure)

    def _line(
        self, scope: Scope, id: str, status: int, seconds: float, record: dict[str, Any], failure: BaseException | None
    ) -> None:
        why: dict[str, Any] = {}
        if failure is not None:
            code, error = told(failure)[:2]
            why = _failed(failure) if code == 500 else {"error": error}
        tenant = getattr(scope["state"].get("tenant"), "name", None) or None
        where = {"method": scope["method"], "path": scope["path"][:_LONGEST], "status": status or None}
        self.log.write("request", id=id, **where, seconds=seconds, tenant=tenant, **record, **why)


def _failed(error: BaseException) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}", "trace": where_from(error)}


def where_from(error: BaseException) -> list[str]:
    """The frames of a traceback, a line each. (Without the source's text: to mark a place in it `traceback` parses it
    anew, which two threads of Python 3.11 must not do at the same time.)"""
    frames = traceback.walk_tb(error.__traceback__)
    return [f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}" for frame, line in frames]


def request_id(given: str) -> str:
    """The client's own id where it is a plain short word, else a new one."""
    if 0 < len(given) <= _LONGEST_ID and given.isascii() and given.replace("-", "").replace("_", "").isalnum():
        return given
    return f"req-{secrets.token_hex(12)}"


def standard_error() -> Log:
    """A log on standard error."""
    return Log(sys.stderr)
