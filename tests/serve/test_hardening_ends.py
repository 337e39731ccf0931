"""Rows S17–S23 and S27 of bad inputs: failures, clients that go away, overload, what must never leak. (S22's signals:
test_hardening_process; S25: test_app and test_chat; S26: test_completions.)"""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from qkv.serve.engine import Engine
from tests.serve.conftest import Running, error, llama, post, request, until

TEXT = {"model": "tiny", "prompt": "one two", "max_tokens": 4}


# --- S17: nothing of the server in an answer, nothing of a client in the log's form


def test_an_exception_tells_clients_nothing(served: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "\x1b[31m/root/secret.py at 0x7f0000000000\nFAKE LINE"

    def fail(*_: Any) -> None:
        raise RuntimeError(secret)

    monkeypatch.setattr(Engine, "submit", fail)
    found = post(served.url, "/v1/completions", TEXT)
    monkeypatch.undo()
    told = error(found, 500)
    assert not any(part in json.dumps(told) for part in ("secret", "0x7f", "Traceback", "qkv/"))
    [line] = [one for one in served.lines.getvalue().splitlines() if found.headers["x-request-id"] in one]
    assert "\x1b" not in served.lines.getvalue()
    assert json.loads(line)["error"] == f"RuntimeError: {secret}"
    assert json.loads(line)["trace"][-1].endswith("in fail")


@pytest.mark.parametrize(
    "path", ["/a%0d%0aFAKE%20LINE", "/%1b[31mred", "/" + "x" * 5000, "/%ff%fe", "/../../etc/passwd"]
)
def test_a_path_can_t_forge_a_line(served: Running, url: str, path: str) -> None:
    before = len(served.log())
    served.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\x1bb\r\nConnection: close\r\n\r\n".encode())
    until(lambda: len(served.log()) > before)
    assert len(served.log()) == before + 1
    assert "\x1b" not in served.lines.getvalue()
    assert len(served.lines.getvalue().splitlines()[-1]) < 1000


# --- S18: a prefix is found again by who sent it, and by nobody else


def test_prefixes_are_shared_within_a_key_alone() -> None:
    keys = ("first-key-1234", "second-key-5678")
    running = Running({"tiny": llama()}, keys=keys)
    body = {**TEXT, "prompt": "The quick brown fox jumps over the lazy dog. " * 4}

    def cached(key: str, **more: Any) -> int:
        found = post(running.url, "/v1/completions", {**body, **more}, headers={"authorization": f"Bearer {key}"})
        count: int = found.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return count

    try:
        assert cached(keys[0]) == 0
        assert cached(keys[0]) > 16
        assert cached(keys[1]) == 0
        assert cached(keys[1]) > 16
        assert cached(keys[0], cache_salt="other") == 0
        assert cached(keys[0], cache_salt="other") > 16
        running.healthy()
    finally:
        running.close()


# --- S19: a client that goes away


def wait_for_running(running: Running, count: int = 1) -> None:
    until(lambda: running.engine.state().running + running.engine.state().waiting >= count)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_client_that_goes_away_is_cancelled(served: Running, url: str, path: str, stream: bool) -> None:
    before = served.engine.state().finished["cancelled"]
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 400, "stream": stream, "ignore_eos": True, "n": 2}
    body |= {"prompt": "one"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "one"}]}
    raw = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(request(path, f"Content-Length: {len(raw)}", body=raw))
        wait_for_running(served)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    until(lambda: served.engine.state().finished["cancelled"] == before + 1)
    until(lambda: served.engine.state().used == 0)
    until(lambda: served.log()[-1].get("reason") == "disconnected")


def test_one_that_waits_in_the_queue_is_cancelled() -> None:
    running = Running({"tiny": llama()}, sizes={"most_running": 1})
    try:
        raw = json.dumps({"model": "tiny", "prompt": "one", "max_tokens": 400, "ignore_eos": True}).encode()
        sockets = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
        for connection in sockets:
            connection.sendall(request("/v1/completions", f"Content-Length: {len(raw)}", body=raw))
        wait_for_running(running, 3)
        for connection in reversed(sockets):
            connection.close()
        until(lambda: running.engine.state().finished["cancelled"] == 3)
        running.healthy()
    finally:
        running.close()


def test_an_answer_that_ends_is_not_cancelled(served: Running, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[str] = []
    monkeypatch.setattr(Engine, "cancel", lambda self, id: cancelled.append(id))
    assert post(url, "/v1/completions", TEXT).status_code == 200
    assert post(url, "/v1/completions", {**TEXT, "stream": True}).text.endswith("data: [DONE]\n\n")
    assert cancelled == []


def test_a_request_has_its_time() -> None:
    running = Running({"tiny": llama()}, request_seconds=0.3)
    try:
        long = {**TEXT, "prompt": ["one"] * 8, "n": 8, "max_tokens": 500, "ignore_eos": True}
        assert error(post(running.url, "/v1/completions", long), 504)["code"] == "timeout"
        text = post(running.url, "/v1/completions", {**long, "stream": True}).text
        assert '"code": "timeout"' in text
        assert text.endswith("data: [DONE]\n\n")
        until(lambda: running.engine.state().used == 0)
    finally:
        running.close()


def test_a_grace_that_is_over_cuts_answers_off() -> None:  # S22
    running = Running({"tiny": llama()}, grace=0)
    wish = {**TEXT, "prompt": ["one"] * 4, "n": 8, "max_tokens": 500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{running.url}/v1/completions", json=wish, timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        running.close()
        rest = [line for line in lines if line]
    assert any('"code": "unavailable"' in line for line in rest)
    assert rest[-1] == "data: [DONE]"
    assert running.server.code == 0


# --- S20, S21: more than there is room for; an engine that dies


def test_more_than_there_is_room_for() -> None:
    running = Running({"tiny": llama()}, sizes={"most_running": 2, "most_waiting": 4})
    body = {**TEXT, "max_tokens": 60, "ignore_eos": True}
    try:
        with ThreadPoolExecutor(40) as pool:
            found = list(pool.map(lambda _: post(running.url, "/v1/completions", body), range(60)))
        refused = [answer for answer in found if answer.status_code == 429]
        assert {answer.status_code for answer in found} == {200, 429}
        for answer in refused:
            assert error(answer, 429)["code"] == "queue_full"
            assert answer.headers["retry-after"] == "1"
        running.healthy()
    finally:
        running.close()


def test_an_engine_that_dies_tells_those_who_wait() -> None:
    running = Running({"tiny": llama()})

    def die(model: object) -> None:
        raise SystemExit

    try:
        wish = {**TEXT, "n": 8, "max_tokens": 500, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post, running.url, "/v1/completions", wish)
            wait_for_running(running)
            running.engine.call(die)
            told = error(waiting.result(20), 500)
        assert "SystemExit" not in told["message"]
        assert httpx.get(f"{running.url}/health").status_code == 503
    finally:
        running.close()


# --- S23: not before the first token


def test_it_is_not_ready_before_its_first_token() -> None:
    running = Running({"tiny": llama()}, start=False)
    try:
        health = httpx.get(f"{running.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "starting"})
        refused = post(running.url, "/v1/completions", TEXT)
        assert error(refused, 503)["code"] == "unavailable"
        assert refused.headers["retry-after"] == "1"
        running.engine.start()
        until(lambda: httpx.get(f"{running.url}/health").status_code == 200)
        running.healthy()
    finally:
        running.close()


# --- S27: what is counted


def test_metrics_know_no_model_but_those_served(url: str) -> None:
    def read() -> dict[str, float]:
        lines = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    before = read()
    for name in ("evil", 'x"} 1\nvllm:fake{a="b', "tiny\n"):
        error(post(url, "/v1/completions", {**TEXT, "model": name}), 404)
    assert post(url, "/v1/completions", TEXT).status_code == 200
    after = read()
    assert set(before) == set(after)
    assert {match[1] for name in after if (match := re.search(r'model_name="([^"]*)"', name))} == {"tiny", "vectors"}
    counters = [name for name in after if re.search(r"_(total|count|bucket|sum)\b", name)]
    assert counters
    assert all(after[name] >= before[name] for name in counters)
    name = 'vllm:generation_tokens_total{model_name="tiny"}'
    assert after[name] > before[name]
