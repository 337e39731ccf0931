"""What is refused before a route sees it: bodies that are too large, too slow or no strict JSON.

Headers are bounded below this, by the protocol (`qkv.serve.protocol`); fields by the schemas, and once more by
`Ask.check`.
"""

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qkv.errors import InputError
from qkv.serve.errors import Refused, respond
from qkv.serve.options import Options
from qkv.strict_json import parse_json

LARGE = 64 * 2**10  # bytes


class Body:
    """ASGI middleware: a request's whole body arrives here, in bounded time and memory, and is one strict JSON object.

    Else 413 (too large; a body that says so is not even read), 408 (too slow), 431 (headers), 415 (no JSON by its own
    word: a browser sends a form to another site's server without asking) or 400 (duplicate keys, NaN, bad UTF-8,
    nesting beyond 64)."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            body = await self._read(Headers(scope=scope), receive)
            if body is None:
                return  # the client has gone
            if len(body) > LARGE:  # parsed beside the event loop, where others stream
                await asyncio.to_thread(_check, body, Headers(scope=scope))
            elif body or scope["method"] == "POST":
                _check(body, Headers(scope=scope))
        except (Refused, InputError) as error:
            refusal = respond(error)
            refusal.headers["connection"] = "close"  # the rest of the body must not be read as the next request
            await refusal(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    def _check_headers(self, scope: Scope) -> None:
        """The protocol bounds those that come in several pieces; these came at once."""
        most = self.options.max_headers
        target = len(scope.get("raw_path", b"")) + len(scope.get("query_string", b""))
        if target + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > most:
            raise Refused(431, f"the request's headers are larger than the {most:,} bytes that are read")

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        """None: the client went away. Refused: 413, 408."""
        most = self.options.max_body
        said = headers.get("content-length", "")
        if said.isascii() and said.isdigit() and int(said[:20]) > most:
            raise _too_large(most)
        pieces, size = [], 0
        try:
            async with asyncio.timeout(self.options.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > most:
                        raise _too_large(most)
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            seconds = self.options.body_seconds
            raise Refused(408, f"the request's body took more than {seconds:g} seconds to arrive") from None


def _too_large(most: int) -> Refused:
    return Refused(413, f"the request's body is larger than the {most:,} bytes that are read", code="body_too_large")


def _check(body: bytes, headers: Headers) -> None:
    """Refused: 415, 400."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "the request must have a body of JSON, and the header 'Content-Type: application/json'")
    if not body:
        raise Refused(400, "the request has no body; it must be a JSON object")
    parse_json(body, where="the body", error=InputError)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes."""
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again
