"""A process for work that a hostile file could make endless or endlessly large.

One JSON line goes in and one comes out, over plain pipes: no pickle, no socket. The parent waits until a deadline and
then kills; the next call starts a fresh process. Both ends are here: `Worker` is the parent's, `serve` the child's.
"""

import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

MAX_MESSAGE = 256 * 2**20  # bytes, either way
_START_SECONDS = 60.0  # a cold Python on a busy machine; not part of any call's own time
_ROOT = str(Path(__file__).resolve().parents[2])
# -P keeps the current folder off sys.path: a jinja2.py lying there must not be imported.
_BOOT = "import sys; r = sys.argv[1]; r in sys.path or sys.path.insert(0, r); from {} import main; main()"
# Nothing else of the environment (keys, tokens) is of use to the child.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_TIME", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class WorkerError(Exception):
    """The call got no answer; the reason is one clause for the caller's own message."""


class Worker:
    """The parent's end of a process that runs `main()` of one of our modules; safe to call from many threads.

    `setup` is sent first whenever a process starts, so a restart after a kill goes unnoticed.
    """

    def __init__(self, module: str, setup: object = None, setup_seconds: float = 30.0) -> None:
        self._command = [sys.executable, "-P", "-c", _BOOT.format(module), _ROOT]
        self._setup, self._setup_seconds = setup, setup_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._ready = False

    def warm(self) -> None:
        """Start the process now and return at once, so that the first call doesn't wait for it."""
        with self._lock:
            self._start()

    def call(self, request: object, seconds: float) -> Any:
        """Send a JSON value and return the one that comes back.

        Raises WorkerError when the answer takes longer than `seconds` (the process is killed) or the process dies.
        """
        with self._lock:
            try:
                process = self._start()
                if not self._ready:
                    _exchange(process, b"", _START_SECONDS)
                    if self._setup is not None:
                        _ask(process, self._setup, self._setup_seconds)
                    self._ready = True
                return _ask(process, request, seconds)
            except BaseException:  # Ctrl-C too: an answer still to come would be taken for the next call's
                self._stop()
                raise

    def close(self) -> None:
        """Stop the process; a later call starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            if self._owner == os.getpid() and self._process.poll() is None:
                return self._process
            self._stop()
        environment = {k: v for k, v in os.environ.items() if k in _ENVIRONMENT or k.startswith("PYTHON")}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent alone
        )
        self._owner, self._ready = os.getpid(), False
        self._finalizer = weakref.finalize(self, _end, self._process)
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._finalizer()
        self._process, self._ready = None, False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # in a fork of its parent this does nothing: the process is no child of the fork's
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _ask(process: subprocess.Popen[bytes], request: object, seconds: float) -> Any:
    line = json.dumps({"seconds": seconds, "request": request}).encode() + b"\n"
    if len(line) > MAX_MESSAGE:
        raise WorkerError(f"its input has {len(line):,} bytes, more than {MAX_MESSAGE:,}")
    reply = json.loads(_exchange(process, line, seconds))
    if "error" in reply:
        raise WorkerError(reply["error"])
    return reply["reply"]


def _exchange(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
    """Write `line` and read one line, both without ever blocking past the deadline."""
    deadline = time.monotonic() + seconds
    assert process.stdin is not None
    assert process.stdout is not None
    out, into = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(out, False)
    os.set_blocking(into, False)
    unsent, received, size = memoryview(line), [], 0
    with selectors.DefaultSelector() as ready:
        ready.register(out, selectors.EVENT_READ)
        if unsent:
            ready.register(into, selectors.EVENT_WRITE)
        while True:
            left = deadline - time.monotonic()
            events = ready.select(left) if left > 0 else []
            if not events:
                raise WorkerError(f"it took more than {seconds:g} s")
            for key, _ in events:
                if key.fd == into:
                    unsent = unsent[_write(into, unsent) :]
                    if not unsent:
                        ready.unregister(into)
                    continue
                chunk = os.read(out, 1 << 20)
                received.append(chunk)
                size += len(chunk)
                if chunk.endswith(b"\n"):
                    return b"".join(received)
                if not chunk:
                    raise WorkerError(_how_it_ended(process))
                if size > MAX_MESSAGE:
                    raise WorkerError(f"its output has more than {MAX_MESSAGE:,} bytes")


def _write(descriptor: int, data: memoryview) -> int:
    try:
        return os.write(descriptor, data[: 1 << 20])
    except BrokenPipeError:
        return len(data)  # the process is gone; the read that follows says how


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code == -signal.SIGALRM:
        return "it took too long"
    return f"its process ended with exit code {code}" + (" (out of memory?)" if code < 0 else "")


def serve(handle: Callable[[Any], Any], memory: int) -> None:
    """The child's loop: answer each request line until the parent closes the pipe. `memory`: bytes of address space."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # macOS may refuse it: there the time limit and the size checks stand alone
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        message = json.loads(line)
        signal.alarm(math.ceil(message["seconds"]) + 1)  # a child whose parent was killed ends by itself
        try:
            reply = {"reply": handle(message["request"])}
        except MemoryError:
            reply = {"error": f"it needs more than {memory >> 20:,} MiB of memory"}
        signal.alarm(0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()
