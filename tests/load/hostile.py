"""A room for hostile files: whoever reads one in here may touch only its own folder, and has little time and memory.

    warm_up()                      # what is imported lazily must be imported before
    with confined(folder):
        read_header(folder / "model.safetensors")

Audit hooks can't be removed, so one is installed once and looks at `_rooms`, which is empty outside of a `with`.
"""

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType

import qkv.errors

_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "socket.", "pickle.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TRUSTED = tuple(Path(p).resolve() for p in (sys.prefix, sys.base_prefix, Path(qkv.errors.__file__).parent))
_rooms: list["_Room"] = []
_watching = threading.local()


class Escape(BaseException):
    """Not an Exception, so that no loader can catch it by accident."""


class _Room:
    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.escapes: list[str] = []

    def watch(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            bad = not self._may_open(args[0], args[2])
        elif event in ("exec", "compile"):
            bad = not self._is_library(args)
        else:
            bad = event.startswith(_FORBIDDEN)
        if bad:
            self.escapes.append(f"{event}{args!r:.200}")
            raise Escape(self.escapes[-1])

    def _may_open(self, name: object, flags: object) -> bool:
        if not isinstance(name, str | bytes | os.PathLike):
            return True  # a descriptor that is open already
        path = Path(os.fsdecode(name)).resolve()
        if path.is_relative_to(self.root):
            return True
        return any(path.is_relative_to(t) for t in _TRUSTED) and not (isinstance(flags, int) and flags & _WRITING)

    def _is_library(self, args: tuple[object, ...]) -> bool:
        """A module that is imported late; its file lies in Python's own folders or qkv's, and never in the room."""
        name = args[0].co_filename if isinstance(args[0], CodeType) else args[-1]
        if not isinstance(name, str) or name.startswith("<"):
            return isinstance(name, str) and name.startswith("<frozen ")
        path = Path(name).resolve()
        return not path.is_relative_to(self.root) and any(path.is_relative_to(t) for t in _TRUSTED)


def _hook(event: str, args: tuple[object, ...]) -> None:
    if not _rooms or getattr(_watching, "now", False):
        return
    _watching.now = True
    try:
        _rooms[0].watch(event, args)
    finally:
        _watching.now = False


sys.addaudithook(_hook)


@contextmanager
def confined(root: Path, seconds: float = 5, megabytes: int = 64) -> Iterator[None]:
    """Fails if the body starts a process, opens a socket, unpickles, runs code that is no library's, opens a file
    outside `root` (reading Python's own files apart), takes longer than `seconds` or grows by over `megabytes`.

    One at a time, in the main thread; threads that the body starts are watched too.
    """
    assert threading.current_thread() is threading.main_thread()
    assert not _rooms
    room = _Room(root)
    handler = signal.signal(signal.SIGALRM, _too_late)
    before, start = _reset_peak(), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _rooms.append(room)
    try:
        yield
    finally:
        _rooms.remove(room)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    taken, grown = time.perf_counter() - start, (_peak() - before) / 2**20
    assert not room.escapes, room.escapes
    assert taken <= seconds, f"took {taken:.1f} s of {seconds}"
    assert grown <= megabytes, f"memory grew by {grown:.0f} MB of {megabytes}"


def _too_late(*_: object) -> None:
    raise Escape("out of time")


def _reset_peak() -> int:
    """Forget the process's largest resident size so far, where the system can (Linux); returns the present one."""
    with suppress(OSError):  # elsewhere a growth below an earlier peak goes unseen
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
