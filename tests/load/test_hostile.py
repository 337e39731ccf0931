"""The room itself: each way out is caught, and what a loader needs is allowed."""

import os
import pickle
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.load.hostile import Escape, confined

WAYS_OUT = {
    "process": lambda outside: subprocess.Popen([sys.executable, "-c", ""]),
    "shell": lambda outside: os.system("true"),
    "socket": lambda outside: socket.socket(),
    "pickle": lambda outside: pickle.loads(b"cos\nsystem\n."),
    "exec": lambda outside: exec("1"),
    "compile": lambda outside: compile("1", "modeling.py", "exec"),
    "read": lambda outside: outside.read_text(),
    "write": lambda outside: outside.write_text(""),
    "python's own folder": lambda outside: (Path(sys.prefix) / "canary").write_text(""),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_way_out_is_caught(tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (tmp_path / "room").mkdir()
    with pytest.raises((Escape, AssertionError)), confined(tmp_path / "room"):
        WAYS_OUT[way](outside)
    assert outside.read_text() == "secret"


def test_an_escape_that_is_swallowed_still_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"os\.system"), confined(tmp_path), suppress(BaseException):
        os.system("true")


def test_time_and_memory_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(Escape, match="out of time"), confined(tmp_path, seconds=0.05):
        time.sleep(5)
    with pytest.raises(AssertionError, match="memory grew"), confined(tmp_path, megabytes=16):
        assert b"x" * (256 << 20)  # far above the limit: the system may count memory that is freed meanwhile


def test_the_own_folder_is_open_and_the_room_ends(tmp_path: Path) -> None:
    with confined(tmp_path):
        (tmp_path / "a").write_text("b")
        assert (tmp_path / "a").read_text() == "b"
    exec("1")
