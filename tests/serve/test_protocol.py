"""Row S8 of bad inputs: connections that are slow, idle, or too many; and ordinary ones that last."""

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.serve.conftest import Running, drain, llama, request, until


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    """A server that waits for nobody."""
    running = Running({"tiny": llama()}, body_seconds=0.5, header_seconds=0.5, most_connections=20)
    yield running
    running.close()


def test_a_slow_body(quick: Running) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), timeout=10) as connection:
        start = time.perf_counter()
        connection.sendall(request("/v1/completions", "Content-Length: 1000", body=b"{"))
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(b" ")
        answer = drain(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.perf_counter() - start < 5
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    quick.healthy()


def test_slow_headers_are_cut_off(quick: Running) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), timeout=10) as connection:
        start = time.perf_counter()
        connection.sendall(b"GET / HTTP/1.1\r\nHost:")
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(b"x")
        assert drain(connection) == b""
    assert time.perf_counter() - start < 5
    quick.healthy()


def test_idle_connections_make_room(quick: Running) -> None:
    many = [socket.create_connection(("127.0.0.1", quick.port), timeout=10) for _ in range(100)]
    try:
        quick.healthy()
        until(lambda: len(quick.server.server_state.connections) <= 20)
    finally:
        for connection in many:
            connection.close()
    until(lambda: not quick.server.server_state.connections)
    quick.healthy()


def test_requests_one_after_the_other_on_a_connection(quick: Running) -> None:
    body = b'{"model": "tiny", "prompt": "x", "max_tokens": 1}'
    one = request("/v1/completions", f"Content-Length: {len(body)}", body=body)
    answer = quick.send(one * 3, wait=3)
    assert answer.count(b"HTTP/1.1 200") == 3
    with httpx.Client(base_url=quick.url) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
            time.sleep(0.3)  # the clock begins anew with each answer
    quick.healthy()
