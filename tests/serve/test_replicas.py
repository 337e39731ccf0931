"""Two replicas on one machine, through Ray Serve and a real socket."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import qkv
from qkv.errors import InputError
from qkv.serve.options import Options
from qkv.serve.replicas import Board, environment, options_of, plan_of
from tests.serve.conftest import error, llama, post, until

KEY = "a-key-for-replicas"
SIZES = {"cache": 1024, "most_running": 4, "most_waiting": 8}
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray is to read stays in here."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def plan(**changes: Any) -> Any:
    given = {"wanted": {"tiny": "tiny"}, "options": Options(keys=(KEY,)), "sizes": SIZES, "how": (None, None, None)}
    return plan_of(**{**given, "replicas": 2, "variable": "QKV_API_KEY", **changes})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


PROGRAM = """
import sys
from qkv.serve.options import Options, keys_from
from qkv.serve.replicas import plan_of, serve_replicas
options = Options(port=int(sys.argv[2]), keys=keys_from("QKV_API_KEY"), grace=20.0)
sizes = {"cache": 1024, "most_running": 4, "most_waiting": 8}
sys.exit(serve_replicas(plan_of({"tiny": sys.argv[1]}, options, sizes, (None, None, 1), 2, "QKV_API_KEY"), 2))
"""


class Process:
    """The command's process and its log."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {**os.environ, "QKV_API_KEY": KEY}
        command = [sys.executable, "-c", PROGRAM, str(folder), str(self.port)]
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.client = httpx.Client(base_url=self.url, timeout=60, headers={"authorization": f"Bearer {KEY}"})

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def has(self, event: str) -> bool:
        assert self.process.poll() is None, "".join(self.lines)[-3000:]
        return any(f'"event": "{event}"' in line for line in self.lines)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = qkv.save(llama(), tmp_path_factory.mktemp("replicas") / "tiny")
    process = Process(folder)
    try:
        until(lambda: process.has("serving"), 240)
        yield process
    finally:
        if process.process.poll() is None:
            process.process.send_signal(signal.SIGTERM)
            assert process.process.wait(120) == 0, "".join(process.lines)[-3000:]


def counts(served: Process) -> dict[str, float]:
    """Requests that each replica has answered."""
    text = served.client.get("/metrics").text
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("vllm:request_success_total"):
            replica = re.search(r'replica="(\d+)"', line)
            assert replica is not None
            found[replica[1]] = found.get(replica[1], 0.0) + float(line.rsplit(" ", 1)[1])
    return found


def test_both_answer_and_both_are_counted(served: Process) -> None:
    body = {"model": "tiny", "prompt": "the cat sat", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    until(lambda: len(counts(served)) == 2, 60)
    before = counts(served)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: served.client.post("/v1/completions", json=body), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    until(lambda: sum(counts(served).values()) - sum(before.values()) == 24, 30)
    after = counts(served)
    assert all(after[replica] > before[replica] for replica in ("0", "1")), (before, after)


def test_it_streams(served: Process) -> None:
    body = {"model": "tiny", "prompt": "the cat", "max_tokens": 8, "temperature": 0, "stream": True}
    with served.client.stream("POST", "/v1/completions", json=body) as response:
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    whole = served.client.post("/v1/completions", json={**body, "stream": False}).json()
    assert data[-1] == "[DONE]"
    assert "".join(json.loads(each)["choices"][0]["text"] for each in data[:-1]) == whole["choices"][0]["text"]


def test_health_keys_and_errors_are_as_without(served: Process) -> None:
    assert httpx.get(served.url + "/health", timeout=30).json() == {"status": "ok"}
    error(httpx.get(served.url + "/metrics", timeout=30), 401)
    error(post(served.url, "/v1/completions", {"model": "tiny", "prompt": "x"}), 401)
    found = served.client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 10**6})
    assert error(found, 400)["code"] == "context_length_exceeded"
    error(served.client.post("/v1/completions", json={"model": "nobody", "prompt": "x"}), 404)


def test_only_the_api_is_open(served: Process) -> None:
    """Its port is on the loopback alone; Ray's own ports, which are not, ask for a token."""
    own = psutil.Process(served.process.pid)
    listening = {
        connection.laddr.ip
        for process in [own, *own.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == served.port
    }
    assert listening == {"127.0.0.1"}
    [line] = [json.loads(line) for line in served.lines if line.startswith("{") and '"event": "serving"' in line]
    code = f"import ray; ray.init(address={line['ray']!r}, logging_level='ERROR'); print(ray.nodes())"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert ran.returncode != 0
    assert "authenticat" in ran.stderr.lower(), ran.stderr[-2000:]


def replicas_of(process: psutil.Process) -> set[int]:
    """The processes of the replicas."""
    found = set()
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ServeReplica" in "".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_a_replica_that_dies_is_replaced(served: Process) -> None:
    own = psutil.Process(served.process.pid)
    replicas = replicas_of(own)
    assert len(replicas) == 2
    killed = min(replicas)
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(replicas_of(own) - {killed}) == 2, 120)
    body = {"model": "tiny", "prompt": "one", "max_tokens": 2}
    until(lambda: served.client.post("/v1/completions", json=body).status_code == 200, 60)


def test_the_board_forgets_who_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("qkv.serve.replicas.time.monotonic", lambda: now[0])
    board = Board()
    board.put("1", "b")
    now[0] = 6.0
    board.put("0", "a")
    assert list(board.all().items()) == [("0", "a"), ("1", "b")]
    now[0] = 11.0
    assert board.all() == {"0": "a"}


def test_what_cannot_be_replicated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="one model, and 2 were named"):
        plan(wanted={"a": "a", "b": "b"})
    with pytest.raises(InputError, match="needs a port"):
        plan(options=Options(port=0))
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(InputError, match=r"pip install 'qkv\[ray\]'"):
        plan()


def test_ray_asks_for_a_token_that_is_new_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = environment()
    assert said["RAY_AUTH_MODE"] == "token"
    assert said["RAY_USAGE_STATS_ENABLED"] == "0"
    assert said["RAY_AUTH_TOKEN"] != environment()["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "RAY_AUTH_TOKEN" not in environment(), "the cluster has its own"


def test_keys_stay_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = plan(wanted={"tiny": str(tmp_path)})
    assert KEY not in repr(made)
    assert made.options.keys == ()
    assert Path(made.ref).is_absolute()
    monkeypatch.setenv("QKV_API_KEY", KEY)
    assert options_of(made).keys == (KEY,)
    monkeypatch.delenv("QKV_API_KEY")
    with pytest.raises(InputError, match="holds 0 API keys where this replica runs, and 1"):
        options_of(made)
