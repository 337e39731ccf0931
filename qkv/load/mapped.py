"""A part of a file as memory: checked to be the same file, zero-copy, and private, so nothing can write to the disk."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from qkv.errors import CorruptFile, NotFound

if TYPE_CHECKING:
    from torch import Tensor


class Identity(NamedTuple):
    """Which bytes a header spoke of: a file that has been replaced or written since has another identity."""

    device: int
    inode: int
    size: int
    modified_ns: int


def open_regular(path: Path) -> BinaryIO:
    """Open for reading; raises NotFound for what is missing, unreadable or no regular file (a pipe would hang)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise NotFound(f"{path} is not a file")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise NotFound(f"{path} can't be opened: {error}") from error


def identify(file: BinaryIO) -> Identity:
    """The identity of an open file."""
    status = os.fstat(file.fileno())
    return Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def map_bytes(path: Path, known: Identity, start: int, nbytes: int) -> Tensor:
    """Bytes `start … start + nbytes` of the file as uint8 `[nbytes]`, copied page by page only when written to.

    The mapping lives as long as a tensor views it. Raises CorruptFile if the file is no longer the `known` one.
    """
    import torch

    with open_regular(path) as file:
        if identify(file) != known:
            raise CorruptFile(f"{path} was changed after its header had been read: load it again")
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        skip = start % mmap.ALLOCATIONGRANULARITY
        mapping = mmap.mmap(file.fileno(), skip + nbytes, access=mmap.ACCESS_COPY, offset=start - skip)
    return torch.frombuffer(mapping, dtype=torch.uint8, count=nbytes, offset=skip)
