"""Downloaded files against their hashes: the damaged are set aside, the whole are remembered.

What has been checked is known again by size, time and inode, so weights are hashed once and not at every start.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.errors import QkvError
from qkv.load.progress import watching
from qkv.strict_json import read_json
from qkv.write import write_json

SLOW_CHECK = 1 << 30  # bytes to hash, about a second's worth, from which on a bar is shown

_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Expected:
    """What a file must be: its size in bytes, and its sha256 (64 digits) or git hash (40); None where unknown."""

    size: int | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Marks:
    """Which files of `folder` have been found whole, by what they are for (`mode`); `file` remembers it."""

    file: Path
    folder: Path

    def has(self, mode: str) -> bool:
        """Whether the files of `mode` have been checked and are, by size, time and inode, the same files still."""
        try:
            known = self._read()[mode]
            return bool(known) and all(_signature(self.folder / name) == seen for name, seen in known.items())
        except (OSError, KeyError, AttributeError, TypeError):
            return False

    def add(self, mode: str, names: Iterable[str]) -> None:
        """Remember that these are the files of `mode`, and that they are whole."""
        modes = {**self._read(), mode: {name: _signature(self.folder / name) for name in names}}
        with suppress(OSError):  # a read-only cache: the files are checked again next time
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, modes)

    def _read(self) -> dict[str, Any]:
        try:
            return read_json(self.file)
        except QkvError:  # none yet, or damaged: nothing has been checked
            return {}


def problems(folder: Path, expected: Mapping[str, Expected], progress: bool) -> dict[str, str]:
    """What is wrong with those of the files in `folder` that aren't what they must be, by name.

    Where no digest is known, a link's target stands for it: in the hub's cache that is a blob, named by its etag.
    """
    hashed = 0

    def count(size: int) -> None:
        nonlocal hashed
        hashed += size

    total = sum((folder / name).stat().st_size for name in expected)
    with watching("checking sha256", lambda: hashed, lambda: total, enabled=progress and total > SLOW_CHECK):
        found = {name: _problem(folder / name, file, count) for name, file in expected.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def set_aside(path: Path) -> Path:
    """Move a damaged file's bytes to `<blob>.damaged` and remove the links to them, so that they are fetched anew."""
    real = path.resolve()
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    aside = real.with_name(real.name + ".damaged")
    real.replace(aside)
    for link in {path, blob}:  # the blob is itself a link where the hub shares it between repositories
        link.unlink(missing_ok=True)
    return aside


def _problem(path: Path, expected: Expected, count: Callable[[int], None]) -> str | None:
    size = path.stat().st_size
    if expected.size not in (None, size):
        return f"has {size} bytes, not {expected.size}"
    digest = expected.digest or (Path(os.readlink(path)).name if path.is_symlink() else "")
    if _SHA256.fullmatch(digest):
        algorithm, found = "sha256", [_hash(path, hashlib.sha256(), count)]
    elif _SHA1.fullmatch(digest):  # a git blob's hash; some mirrors give the plain SHA-1 as their etag
        algorithm, headed = "git hash", hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        found = [_hash(path, headed, count), _hash(path, hashlib.sha1(usedforsecurity=False), count)]
    else:
        return None
    return None if digest in found else f"has {algorithm} {found[0]}, not {digest}"


def _hash(path: Path, digest: hashlib._Hash, count: Callable[[int], None]) -> str:
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            count(len(chunk))
    return digest.hexdigest()


def _signature(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
