"""Files of tensors, or of some rows of each: what one rank of a sharded run holds. Any number of ranks reads them
again, each the rows that it needs.

The files are safetensors. Where one holds some rows of a tensor only, its metadata say which: "slices" is JSON that
maps the name to [first row, rows of the whole tensor].
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from qkv.errors import CorruptFile, WeightError
from qkv.load.safetensors import DTYPES, FORMAT, Header, read_header
from qkv.strict_json import parse_json

KINDS = {getattr(torch, name): kind for kind, (name, _) in DTYPES.items() if hasattr(torch, name)}


class Slice(NamedTuple):
    """Rows `start …` of a tensor of `shape`, which so many `parts` hold together; all of it, of a plain one."""

    rows: Tensor
    start: int
    shape: tuple[int, ...]
    parts: int = 1


class Stamp(NamedTuple):
    """What a file was when it was written: its bytes, and their sha256 in hexadecimal."""

    size: int
    sha256: str


def is_sharded(tensor: Tensor) -> bool:
    """Does each rank hold some of its rows?"""
    if type(tensor) in (Tensor, nn.Parameter):
        return False  # without importing DTensor, which takes a while
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def span(rows: int, parts: int, part: int) -> tuple[int, int]:
    """First row and last + 1 of a part, as torch.chunk and FSDP2 cut: all of ⌈rows / parts⌉ but the last ones."""
    each = -(-rows // parts)
    return min(part * each, rows), min((part + 1) * each, rows)


@torch.no_grad()
def slice_of(tensor: Tensor) -> Slice:
    """The rows of a tensor that are here, sharing its memory. WeightError: sharded otherwise than by rows."""
    if not is_sharded(tensor):
        return Slice(tensor.detach(), 0, tuple(tensor.shape))
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    if tuple(tensor.placements) != (Shard(0),):
        raise WeightError(f"a tensor is laid out as {tensor.placements}: only rows over one axis of ranks are known")
    start, stop = span(tensor.shape[0], mesh.size(), mesh.get_local_rank())
    rows = tensor.to_local().detach()
    if rows.shape != (stop - start, *tensor.shape[1:]):
        raise WeightError(f"{list(rows.shape)} of {list(tensor.shape)} are not the rows {start} to {stop}")
    return Slice(rows, start, tuple(tensor.shape), mesh.size())


# --- writing --------------------------------------------------------------------------------------------------------


def write_slices(path: Path, slices: Mapping[str, Slice]) -> Stamp:
    """Write a file, tensor by tensor without a second copy in memory, and see it onto the disk.

    Raises WeightError for a tensor that the format can't hold, OSError where the disk can't."""
    order = sorted(slices, key=lambda name: (-slices[name].rows.element_size(), name))  # aligned without holes
    entries: dict[str, Any] = {"__metadata__": _metadata(slices)}
    at = 0
    for name in order:
        rows = slices[name].rows
        if rows.dtype not in KINDS or rows.is_meta or rows.layout != torch.strided:
            raise WeightError(f"{name!r} ({rows.dtype}, {rows.layout}, {rows.device}) can't be saved as safetensors")
        entries[name] = {"dtype": KINDS[rows.dtype], "shape": list(rows.shape), "data_offsets": [at, at + rows.nbytes]}
        at += rows.nbytes
    header = json.dumps(entries, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return write_bytes(path, _pieces(header, [slices[name].rows for name in order]))


def write_bytes(path: Path, pieces: Iterator[Any]) -> Stamp:
    """Write a new file from buffers, and see it onto the disk."""
    size, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return Stamp(size, digest.hexdigest())


def _metadata(slices: Mapping[str, Slice]) -> dict[str, str]:
    parts = {name: [part.start, part.shape[0]] for name, part in slices.items() if part.parts > 1}
    return {**FORMAT, **({"slices": json.dumps(parts)} if parts else {})}


def _pieces(header: bytes, tensors: Sequence[Tensor]) -> Iterator[Any]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        if tensor.numel():
            yield tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


# --- reading --------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Rows `start … stop` of a tensor, in one file."""

    file: Header
    start: int
    stop: int


class Slices:
    """The tensors that some files hold together."""

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        """`where`: what messages call these files. CorruptFile: rows are missing or twice there."""
        self.where = where
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._pieces: dict[str, list[Piece]] = {}
        for header in map(read_header, paths):
            parts = _said(header)
            for name, info in header.tensors.items():
                start, rows = parts.get(name, (0, info.shape[0] if info.shape else 1))
                shape = (rows, *info.shape[1:]) if info.shape else ()
                dtype = getattr(torch, DTYPES[info.dtype][0])
                if (self.shapes.setdefault(name, shape), self.dtypes.setdefault(name, dtype)) != (shape, dtype):
                    raise CorruptFile(f"{header.path}: tensor {name!r} is of another shape or dtype in another file")
                stop = start + (info.shape[0] if info.shape else 1)
                self._pieces.setdefault(name, []).append(Piece(header, start, stop))
        for name, pieces in self._pieces.items():
            self._check_cover(name, pieces)

    def load(self, into: Mapping[str, Tensor]) -> None:
        """Fill tensors in place, each rank its own rows, from mapped memory.

        WeightError, before any is touched: a tensor that is in one of both only, of another shape or dtype."""
        slices = {name: slice_of(tensor) for name, tensor in into.items()}
        problems = list(self._differences(slices))
        if problems:
            raise WeightError("\n  ".join([f"{self.where} doesn't fit:", *problems]))
        with torch.no_grad():
            for name, part in slices.items():
                self._fill(name, part)

    def read(self) -> dict[str, Tensor]:
        """All tensors, whole, in memory that is copied only when written to (never to the file)."""
        return {name: self._whole(name) for name in self.shapes}

    def _whole(self, name: str) -> Tensor:
        pieces = self._pieces[name]
        if len(pieces) == 1:
            return pieces[0].file.read(name)
        return torch.cat([piece.file.read(name) for piece in pieces])

    def _fill(self, name: str, part: Slice) -> None:
        if not part.shape:
            part.rows.copy_(self._whole(name))
            return
        stop = part.start + len(part.rows)
        for piece in self._pieces[name]:
            first, last = max(part.start, piece.start), min(stop, piece.stop)
            if first < last:
                rows = piece.file.read(name)[first - piece.start : last - piece.start]
                part.rows[first - part.start : last - part.start].copy_(rows)

    def _check_cover(self, name: str, pieces: list[Piece]) -> None:
        pieces.sort(key=lambda piece: (piece.start, piece.stop))
        at = 0
        for piece in pieces:
            if piece.start != at:
                raise CorruptFile(f"{piece.file.path}: tensor {name!r} has rows from {piece.start} on, not from {at}")
            at = piece.stop
        rows = self.shapes[name][0] if self.shapes[name] else 1
        if at != rows:
            raise CorruptFile(f"{self.where}: tensor {name!r} has {at} of {rows} rows: a file is missing")

    def _differences(self, slices: Mapping[str, Slice]) -> Iterator[str]:
        yield from (f"missing: {name}" for name in slices if name not in self.shapes)
        yield from (f"unexpected: {name}" for name in self.shapes if name not in slices)
        for name, part in slices.items():
            held = (self.shapes.get(name, part.shape), self.dtypes.get(name, part.rows.dtype))
            if held != (part.shape, part.rows.dtype):
                should = f"{list(part.shape)} {part.rows.dtype}"
                yield f"misfit: {name} is {list(held[0])} {held[1]}, should be {should}"


def _said(header: Header) -> dict[str, tuple[int, int]]:
    """The first row and the whole's rows of each tensor of which a file holds some."""
    parts = parse_json(header.metadata.get("slices", "{}").encode(), where=f"{header.path}: slices")
    for name, said in parts.items():
        numbers = isinstance(said, list) and len(said) == 2 and all(type(n) is int and n >= 0 for n in said)
        if not numbers or name not in header.tensors or not header.tensors[name].shape:
            raise CorruptFile(
                f"{header.path}: slices: {name!r:.200} is {said!r:.40}, not [first row, rows] of a tensor"
            )
    return {name: cast(tuple[int, int], tuple(said)) for name, said in parts.items()}
