"""Server-sent events as they go over the wire, and what is counted."""

import json
import threading
from typing import Any

import httpx
import pytest

from qkv.serve.engine import Engine
from qkv.serve.events import Began, Ended, Failed, Piece, Times, Usage
from qkv.serve.stream import Total
from tests.serve.conftest import Running, error, post

BODY = {"model": "tiny", "prompt": "One", "max_tokens": 5, "stream": True}


def test_the_form(url: str) -> None:
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert "content-length" not in answer.headers
        raw = b"".join(answer.iter_bytes()).decode()
    events = raw.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(event.startswith("data: {") and "\n" not in event for event in events)
    assert all(json.loads(event.removeprefix("data: "))["object"] == "text_completion" for event in events)


def test_what_fails_before_the_first_event_has_a_status(url: str) -> None:
    assert error(post(url, "/v1/completions", {**BODY, "prompt": [5] * 600}), 400)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objct"}}}
    assert error(post(url, "/v1/completions", {**BODY, "response_format": form}), 400)["param"] == "response_format"


def test_what_fails_later_is_an_event(served: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(self: Engine, ask: object, deliver: object) -> None:
        assert callable(deliver)
        deliver(Began(1, 0))
        deliver(Piece(0, "a", ()))
        deliver(Failed(RuntimeError("/root/secret"), 500))

    monkeypatch.setattr(Engine, "submit", submit)
    for path, body in (
        ("/v1/completions", BODY),
        ("/v1/chat/completions", {**BODY, "messages": [{"role": "user", "content": "x"}], "prompt": None}),
    ):
        sent = {name: value for name, value in body.items() if value is not None}
        answer = post(url, path, sent)
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert set(json.loads(events[-2])) == {"error"}
        assert "secret" not in answer.text
        assert error(post(url, path, {**sent, "stream": False}), 500)
    monkeypatch.undo()
    assert served.log()[-1]["error"] == "RuntimeError: /root/secret"


def test_lines_end_where_events_do(served: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx, requests and Python itself cut lines at more characters than server-sent events do."""
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\u4e2d\U0001f600"

    def submit(self: Engine, ask: object, deliver: object) -> None:
        assert callable(deliver)
        deliver(Began(1, 0))
        deliver(Piece(0, text, ()))
        deliver(Ended(0, "stop", Usage(1, 0, 1), Times(0, 0, 0, 0), None))

    monkeypatch.setattr(Engine, "submit", submit)
    found = ""
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=30) as answer:
        for line in answer.iter_lines():
            assert line == "" or line.startswith("data: ")
            if line.startswith("data: {"):
                found += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    monkeypatch.undo()
    assert found == text


def test_a_request_is_taken_beside_the_event_loop(served: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through every token of the prompt, and others' answers must come meanwhile."""
    threads, real = [], Engine.submit

    def submit(self: Engine, ask: Any, deliver: Any) -> None:
        threads.append(threading.current_thread())
        real(self, ask, deliver)

    monkeypatch.setattr(Engine, "submit", submit)
    assert post(url, "/v1/completions", {**BODY, "prompt": ["One", "Two"], "n": 2}).status_code == 200
    assert len(threads) == 2
    assert served.thread not in threads


def test_totals() -> None:
    total = Total()
    total.add(Began(10, 4))
    for i in range(2):
        total.add(Ended(i, "stop", Usage(10, 4, 3), Times(0.1, 0.2, 0.3, 0.4), None))
    assert total.usage() == {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert total.record()["first"] == 0.3
    assert total.record()["reason"] == "stop"
