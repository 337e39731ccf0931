"""One run a folder: a lock that the system gives up with the process that holds it, however that ends."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from qkv.errors import InputError

NAME = "run.lock"
_held: dict[Path, IO[str]] = {}  # POSIX locks don't exclude the own process, and closing any file of it frees them


class Lock:
    """Taken when made, until `release` or the end of the process or of a `with`. The file stays, and says nothing
    without a process behind it. Workers that the process forks don't hold it (POSIX record locks)."""

    def __init__(self, folder: str | Path) -> None:
        """Make the folder if need be. InputError: another run holds it, or the folder can't be written."""
        self.path = Path(folder).resolve() / NAME
        if self.path in _held:
            raise InputError(f"{self.path.parent} is in use by a run of this very process")
        self._file = _open(self.path)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._sign()
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(self._file)
            self._file.close()
            raise InputError(
                f"{self.path.parent} is in use by another run: {holder}; choose another folder, or stop that one"
            ) from error
        except OSError as error:
            self._file.close()
            raise InputError(
                f"{self.path} can't be locked: {error.strerror}; choose a folder on another disk"
            ) from error
        _held[self.path] = self._file

    def release(self) -> None:
        """Give it back; once more does nothing."""
        if not self._file.closed:
            self._file.close()
            del _held[self.path]

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _sign(self) -> None:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._file.truncate(0)
        self._file.write(json.dumps(who) + "\n")
        self._file.flush()


def _open(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.parent} can't be written: {error.strerror}; choose another folder") from error


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        who = json.loads(file.read())
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock and hasn't signed yet
        return "a process that is just starting"
