"""A worker answers in time, or is killed and replaced; the parent stays whole."""

import os
import subprocess
import threading
import time

import pytest

from qkv.inputs.worker import Worker, WorkerError

ENDLESS = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def ask(worker: Worker, template: str, seconds: float = 20, **variables: object) -> str:
    answer = worker.call({"template": template, "variables": variables}, seconds)
    return str(answer["text"])


@pytest.fixture(scope="module")
def worker() -> Worker:
    return Worker("qkv.inputs.sandbox")


def test_a_killed_worker_is_replaced(worker: Worker) -> None:
    assert ask(worker, "{{ x }}", x=1) == "1"
    first = worker._process
    begin = time.monotonic()
    with pytest.raises(WorkerError, match=r"more than 0\.3 s"):
        ask(worker, ENDLESS, seconds=0.3)
    assert time.monotonic() - begin < 5
    assert ask(worker, "{{ x }}", x=2) == "2"
    assert first is not None
    assert first.returncode is not None
    assert worker._process is not first


def test_a_worker_killed_from_outside_is_an_error_once(worker: Worker) -> None:
    ask(worker, "x")
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait()
    assert ask(worker, "{{ 1 + 1 }}") == "2"


def test_threads_get_their_own_answers(worker: Worker) -> None:
    got: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: ask(worker, "{{ i }}", i=i)})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: str(i) for i in range(16)}


def test_messages_larger_than_a_pipe(worker: Worker) -> None:
    text = "é" * 3_000_000
    assert ask(worker, "{{ text }}", text=text) == text


def test_close_ends_the_process_and_warm_starts_one() -> None:
    worker = Worker("qkv.inputs.sandbox")
    worker.warm()
    process = worker._process
    assert process is not None
    assert process.poll() is None
    worker.close()
    assert process.poll() is not None


def test_a_forked_child_leaves_the_parents_worker_alone(worker: Worker) -> None:
    ask(worker, "x")
    process = worker._process
    child = os.fork()
    if child == 0:
        os._exit(0 if ask(worker, "{{ 2 }}") == "2" and worker._process is not process else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ask(worker, "{{ 3 }}") == "3"
    assert worker._process is process


def test_secrets_of_the_environment_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKV_API_KEY", "secret")
    seen: list[dict[str, str]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            seen.append(dict(kwargs["env"]))  # type: ignore[call-overload]
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    worker = Worker("qkv.inputs.sandbox")
    worker.warm()
    worker.close()
    assert len(seen) == 1
    assert "secret" not in seen[0].values()
