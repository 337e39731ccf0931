"""Whole `qkv train` processes, to be killed, stopped and starved.

A helper process imports everything once and runs a test's work; that forks a process for each run, which then takes
no time to start. Forking pytest's own process isn't safe once autograd ran."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qkv

LONG = 30.0  # seconds that a stalled place stalls


class Helper:
    """Runs functions of a module in the helper process, one after another."""

    def __init__(self, module: str) -> None:
        own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "QKV_NATIVE": "0"}  # no kernels to compile
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.forks", module],
            env={**os.environ, **own},
            cwd=Path(qkv.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, name: str, *args: Any) -> None:
        """AssertionError: what the function raised there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, [str(arg) for arg in args]]) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        assert told is None, told

    def close(self) -> None:
        self._process.communicate(timeout=60)


@contextmanager
def helper(module: str) -> Iterator[Helper]:
    made = Helper(module)
    try:
        yield made
    finally:
        made.close()


# --- in the helper process ------------------------------------------------------------------------------------------


class Run:
    """A `qkv train` of this command line; what it says goes to a file. `first`: done in it before."""

    def __init__(self, *args: object, said: Path, first: Callable[[], None] = lambda: None) -> None:
        self.said = said
        self.pid = os.fork()
        if not self.pid:
            _run([str(arg) for arg in args], said, first)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self, within: float = LONG) -> int:
        """Its exit code (below 0: a signal). AssertionError: it hangs."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.signal(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"it didn't end within {within} s; it said:\n{self.text()}")

    def text(self) -> str:
        return self.said.read_text()


def _run(args: list[str], said: Path, first: Callable[[], None]) -> None:
    code = 1
    try:
        with said.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        first()
        from qkv.cli.app import run

        code = run(["train", *args])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def at_call(place: str, number: int, do: Callable[[], None]) -> None:
    """From now on `do` is done at the start of the so-many-th call of a function, "module:Class.name"."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    own, calls = getattr(owner, name), 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            do()
        return own(*args, **options)

    setattr(owner, name, counted)


def reached(mark: Path, seconds: float = LONG) -> Callable[[], None]:
    """Says so by a file, and stalls."""

    def do() -> None:
        mark.touch()
        time.sleep(seconds)

    return do


def wait_for(mark: Path, run: Run) -> None:
    end = time.monotonic() + LONG
    while not mark.exists():
        assert time.monotonic() < end, f"it never came there; it said:\n{run.text()}"
        assert os.waitpid(run.pid, os.WNOHANG)[0] == 0, f"it ended before; it said:\n{run.text()}"
        time.sleep(0.005)


def _main() -> None:
    import torch._dynamo  # an optimizer's first step imports it  # noqa: F401

    import qkv.train.run as run
    from qkv.train import curve

    run.gemm_peak = lambda *_: 1e9  # measured for half a second each time, else
    curve.png = lambda *_: None  # a second's work
    os.fsync = lambda _: None  # against power cuts: a killed process loses nothing that it wrote
    home = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        name, args = json.loads(line)
        told = None
        try:
            getattr(home, name)(*map(Path, args))
        except BaseException:
            told = traceback.format_exc()
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    _main()
