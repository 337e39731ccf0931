"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

from qkv.train.heap import keep_freed

FAULTS = """
import resource, sys, torch
from qkv.train.heap import keep_freed

def step():
    return len(torch.ones(2**24))

kept = keep_freed() if sys.argv[1] == "keep" else None
for _ in range(20):  # an aligned block needs a little more than the last one left, until the ends have met
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[str, int]:
    """What `keep_freed` says in a new process, and pages that it had to be given in ten like steps."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


def test_the_next_step_takes_what_the_last_one_freed() -> None:
    """64 MB, which glibc gives back whatever it has learned, are 16,384 pages, ten times."""
    kept, count = faults("keep")
    assert kept == str(platform.libc_ver()[0] == "glibc")
    if kept == "True":
        assert count < 1000 < 16384 < faults("plain")[1]


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed.__wrapped__() is False
