"""One run a folder, whoever it is, and no lock outlives its process."""

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qkv.errors import InputError
from qkv.train.lock import NAME, Lock


@contextmanager
def elsewhere(folder: Path) -> Iterator[int]:
    """A process that holds the lock, and a worker that it forked and that outlives it, up to the end of the `with`."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        Lock(folder)
        worker = os.fork()
        if worker:
            os.write(told, f"{worker}\n".encode())
        while True:
            signal.pause()
    said = b""
    while not said.endswith(b"\n"):
        said += os.read(ready, 100)
    try:
        yield pid
    finally:
        os.kill(int(said), signal.SIGKILL)
        os.close(ready)
        os.close(told)


def test_a_second_run_is_told_who_holds_it(tmp_path) -> None:
    with elsewhere(tmp_path / "run") as pid:
        try:
            with pytest.raises(InputError, match=f"another run: process {pid} on {socket.gethostname()}, since 2"):
                Lock(tmp_path / "run")
            assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == pid
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with Lock(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()


def test_a_second_run_in_one_process(tmp_path) -> None:
    with Lock(tmp_path):
        with pytest.raises(InputError, match="by a run of this very process"):
            Lock(tmp_path / "." / "")
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if _refused(tmp_path) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # the failed try didn't free it


def _refused(folder: Path) -> bool:
    from qkv.train import lock

    lock._held = {}  # as in a process of its own
    try:
        Lock(folder)
    except InputError as error:
        return "another run" in str(error)
    return False


def test_it_can_be_taken_again(tmp_path) -> None:
    lock = Lock(tmp_path)
    lock.release()
    lock.release()
    with Lock(tmp_path):
        lock.release()
        with pytest.raises(InputError, match="this very process"):
            Lock(tmp_path)


@pytest.mark.parametrize("left", ["", "{", '{"pid": 1}', "[]", '{"pid": 1, "host": "x", "since": "1999"}'])
def test_what_a_dead_run_left_says_nothing(tmp_path, left: str) -> None:
    (tmp_path / NAME).write_text(left)
    with Lock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


@contextmanager
def read_only() -> Iterator[Path]:
    """A folder that this process can't write to, root or not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            yield Path(folder)
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_can_not_be_written(below: str) -> None:
    with read_only() as folder, pytest.raises(InputError, match="can't be written: Permission denied; choose another"):
        Lock(folder / below)


def test_a_file_in_the_folders_place(tmp_path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run can't be written: File exists"):
        Lock(tmp_path / "run")
