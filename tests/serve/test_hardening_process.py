"""Rows S22 and S29 of bad inputs: `qkv serve` as a process of its own, its port, its signals and its exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest

import qkv
from tests.serve.conftest import drain, llama, until

TEXT = {"model": "tiny", "prompt": "one two", "max_tokens": 4}


class Process:
    """`qkv serve` of a folder, until it is ready."""

    def __init__(self, folder: Path, *args: str, **environment: str) -> None:
        code = "import torch; torch.set_num_threads(1); from qkv.cli import main; main()"
        command = [sys.executable, "-c", code, "serve", f"tiny={folder}", "--port", "0", "--json", *args]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        lines = []
        while (line := self.process.stdout.readline()) not in ("}\n", ""):
            lines.append(line)
        assert lines, self.process.stderr.read()
        self.url = json.loads("".join(lines) + "}")["url"]
        while '"ready"' not in (line := self.process.stderr.readline()):
            assert line

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qkv.save(llama(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def process(folder: Path) -> Iterator[Process]:
    made = Process(folder, QKV_API_KEY="key-of-this-test")
    yield made
    made.process.kill()
    made.process.wait()


def reachable(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", timeout=5)
    except httpx.HTTPError:
        return False
    return True


HEAD = {"authorization": "Bearer key-of-this-test"}


def test_one_port_one_signal_and_no_key_in_sight(process: Process) -> None:
    own = psutil.Process(process.process.pid)
    listening = [c for c in own.net_connections() if c.status == psutil.CONN_LISTEN]
    for child in own.children(recursive=True):
        listening += [c for c in child.net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(c.laddr.ip, c.laddr.port) for c in listening] == [("127.0.0.1", int(process.url.rsplit(":", 1)[1]))]
    assert not any("key-of-this-test" in word for word in own.cmdline())
    answer = httpx.post(f"{process.url}/v1/completions", json=TEXT, headers=HEAD, timeout=30)
    assert answer.status_code == 200
    with socket.create_connection(("127.0.0.1", listening[0].laddr.port), timeout=5) as connection:
        connection.sendall(b"\0\x1b[31m\r\n\r\n")
        assert drain(connection).startswith(b"HTTP/1.1 400")
    process.process.send_signal(signal.SIGTERM)  # idle
    code, err = process.end()
    assert code == 0, err
    assert "key-of-this-test" not in err
    assert {json.loads(line)["event"] for line in err.splitlines()} == {"request", "library", "stop", "stopped"}
    stop, stopped = (json.loads(line) for line in err.splitlines()[-2:])
    assert (stop["event"], stopped["event"], stopped["code"]) == ("stop", "stopped", 0)
    seconds = datetime.fromisoformat(stopped["time"]) - datetime.fromisoformat(stop["time"])
    assert seconds.total_seconds() < 5  # idle: far less than the grace


def test_open_answers_end_first(process: Process) -> None:
    wish = {**TEXT, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{process.url}/v1/completions", json=wish, headers=HEAD, timeout=30) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        process.process.send_signal(signal.SIGTERM)
        until(lambda: not reachable(process.url))
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.end()[0] == 0


def test_a_second_signal_ends_it_now(process: Process) -> None:
    wish = {**TEXT, "prompt": ["one"] * 16, "n": 8, "max_tokens": 500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{process.url}/v1/completions", json=wish, headers=HEAD, timeout=30) as stream:
        lines = stream.iter_lines()  # a name keeps it: once it is collected the stream is closed
        assert next(lines).startswith("data: ")
        start = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.process.send_signal(signal.SIGTERM)
        code, err = process.end()
    assert code == 128 + signal.SIGTERM, err
    assert time.monotonic() - start < 20  # the grace is 30
