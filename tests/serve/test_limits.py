"""Bodies: read whole, in bounded size and time, and parsed strictly; by the middleware alone, without a socket."""

import asyncio
import json
from typing import Any

import pytest

from qkv.serve.limits import LARGE, Body
from qkv.serve.options import Options

JSON = [(b"content-type", b"application/json; charset=utf-8")]


def ask(
    pieces: list[bytes],
    headers: list[tuple[bytes, bytes]] = JSON,
    method: str = "POST",
    wait: float = 0,
    **options: Any,
) -> tuple[int, Any]:
    """(the status, what the application behind it read, or the error's message)."""
    read, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def run() -> None:
        left = list(pieces)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(wait)
            if not left:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": "/", "headers": headers, "query_string": b""}
        await Body(app, Options(**options))(scope, receive, send)

    asyncio.run(run())
    if not sent:
        return 0, None
    found = read[0] if read else json.loads(sent[1]["body"])["error"]["message"]
    return sent[0]["status"], found


def test_a_body_in_pieces_is_one() -> None:
    assert ask([b'{"a"', b": 1", b"}"]) == (200, b'{"a": 1}')
    large = json.dumps({"a": "x" * LARGE}).encode()
    assert ask([large]) == (200, large)


def test_without_a_body() -> None:
    assert ask([b""], [], "GET") == (200, b"")
    assert ask([b""])[0] == 400
    assert ask([b""], [])[0] == 415
    assert ask([b"{}"], [(b"content-type", b"text/plain")], "GET")[0] == 415


def test_too_large_by_its_own_word_or_by_itself() -> None:
    said = [*JSON, (b"content-length", b"101")]
    assert ask([b"{}"], said, max_body=100)[0] == 413
    assert ask([b" " * 60, b" " * 60], max_body=100)[0] == 413
    assert ask([b"{" + b" " * 98 + b"}"], max_body=100)[0] == 200
    assert ask([b"{}"], [*JSON, (b"content-length", b"9" * 5000)], max_headers=10**5)[0] == 413


def test_too_slow() -> None:
    status, message = ask([b"{", b" ", b"}"], wait=0.2, body_seconds=0.3)
    assert (status, "0.3 seconds" in message) == (408, True)


def test_headers_that_came_at_once() -> None:
    assert ask([b"{}"], [*JSON, (b"x", b"y" * 1000)], max_headers=900)[0] == 431


def test_a_client_that_goes_away_is_not_answered() -> None:
    assert ask([]) == (0, None)


@pytest.mark.parametrize(
    "body", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b"[1]", b"\xff", b'{"a":' * 65 + b"1" + b"}" * 65]
)
def test_strict_json(body: bytes) -> None:
    assert ask([body])[0] == 400
    assert "the body" in ask([body])[1]
