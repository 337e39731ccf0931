"""Listening, starting and stopping. (Signals: test_hardening_ends, in a process of its own.)"""

import json
import signal
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from qkv.errors import InputError
from qkv.serve import run
from qkv.serve.options import Options
from qkv.serve.run import address, bind
from tests.serve.conftest import Running, llama, request, until


def test_a_port_that_is_taken_is_named() -> None:
    with bind(Options(port=0)) as listening:
        port = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"port {port}"):
            bind(Options(port=port))
    with pytest.raises(InputError, match=r"203\.0\.113\.1"):
        bind(Options(host="203.0.113.1", port=0))


def test_the_newer_internet_protocol() -> None:
    try:
        listening = bind(Options(host="::1", port=0))
    except InputError:
        with pytest.raises(OSError, match=r"."), socket.socket(socket.AF_INET6) as own:  # there is none on this machine
            own.bind(("::1", 0))
        return
    with listening:
        assert address(listening).startswith("http://[::1]:")


def test_an_engine_that_can_t_start_ends_the_server() -> None:
    model = llama()
    running = Running({"tiny": model}, start=False)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel")

    running.engine._loop._warm_up = fail  # type: ignore[method-assign]
    running.engine.start()
    running.thread.join(20)
    assert running.server.code == 1
    assert any(line["event"] == "failed" and "no kernel" in line["error"] for line in running.log())


def test_an_engine_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STUCK", 0.3)
    running = Running({"tiny": llama()}, grace=0.1)
    release = threading.Event()
    running.engine.call(lambda model: release.wait(30))
    running.close()
    assert running.server.code == 1
    assert any("did not end" in line.get("error", "") for line in running.log())
    release.set()
    until(lambda: not running.engine.alive)


def test_a_request_to_an_engine_that_does_not_end_has_its_grace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STUCK", 0.3)
    running = Running({"tiny": llama()}, grace=2.0)
    release = threading.Event()
    running.engine.call(lambda model: release.wait(30))
    body = json.dumps({"model": "tiny", "prompt": "one"}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(request("/v1/completions", f"Content-Length: {len(body)}", body=body))
        until(lambda: running.engine.state().submitted == 1)
        began = time.monotonic()
        running.close()
    assert time.monotonic() - began < 2 * 2.0
    assert running.server.code == 1
    release.set()
    until(lambda: not running.engine.alive)


def test_stopping_is_told() -> None:
    running = Running({"tiny": llama()})
    running.healthy()
    running.close()
    assert [line["event"] for line in running.log()][-2:] == ["stop", "stopped"]
    assert running.server.code == 0
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{running.url}/health")


def test_the_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running({"tiny": llama()})
    ended: list[int] = []
    monkeypatch.setattr(run.os, "_exit", ended.append)
    running.server.handle_exit(signal.SIGTERM, None)
    assert not ended
    running.server.handle_exit(signal.SIGINT, None)
    assert ended == [130]
    running.thread.join(20)


def test_handlers_are_given_back() -> None:
    running = Running({"tiny": llama()})
    before = signal.getsignal(signal.SIGTERM)
    with running.server.capture_signals():
        assert signal.getsignal(signal.SIGTERM) == running.server.handle_exit
    assert signal.getsignal(signal.SIGTERM) == before
    running.close()
