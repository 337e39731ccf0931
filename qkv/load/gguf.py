"""Read a GGUF header (ggml's `docs/gguf.md`, versions 2 and 3, little endian) without torch and without trust.

Nothing is allocated or repeated by a number in the file before that number has been held against the bytes that are
left. `gguf.GGUFReader` reads the same files, but takes seconds for a vocabulary and trusts the header.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qkv.errors import CorruptFile, NotFound
from qkv.kernels.blocks import TYPES, Block
from qkv.load.mapped import Identity, identify, map_bytes, open_regular

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000  # bytes, as in safetensors; a vocabulary of 262,144 tokens needs under 10 MB
_MAX_NAME = 65535
_MAX_DIMS = 4
_MAX_COUNT = 2**63 - 1

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


_REMOVED = {4, 5, 31, 32, 33, 36, 37, 38}


@dataclass(frozen=True)
class GgufTensor:
    """`shape` in torch's order (GGUF stores it reversed); `offset` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """A checked header: `metadata` holds int, float, bool, str or a list of one of these for each key."""

    path: Path
    version: int
    metadata: dict[str, object]
    tensors: dict[str, GgufTensor]
    alignment: int
    data_start: int
    identity: Identity = field(repr=False)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor, dequantized to `dtype` (float32 where none is given).

        Raises NotFound for a name that the file lacks, WeightError for a type that qkv can't dequantize.
        """
        import torch

        from qkv.kernels.dequantize import dequantize

        raw, tensor = self.raw(name), self.tensors[name]
        return dequantize(raw, tensor.type, tensor.shape, torch.float32 if dtype is None else dtype)

    def raw(self, name: str) -> torch.Tensor:
        """One tensor's bytes, uint8 `[bytes]`, as they lie in the file. Raises NotFound for a name it lacks."""
        if name not in self.tensors:
            raise NotFound(f"{self.path} has no tensor {name!r}")
        tensor = self.tensors[name]
        return map_bytes(self.path, self.identity, tensor.offset, tensor.nbytes)


def read_gguf(path: str | Path) -> GgufFile:
    """Check and read a GGUF file's header. Raises CorruptFile naming the file and what is wrong, or NotFound."""
    path = Path(path)
    with open_regular(path) as file:
        identity = identify(file)
        if identity.size < 24:
            raise CorruptFile(f"{path}: {identity.size} bytes are too few for a GGUF file (download cut short?)")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data, identity)


def _parse(path: Path, data: mmap.mmap, identity: Identity) -> GgufFile:
    reader = _Reader(path, data, identity.size)
    version = _version(reader)
    tensor_count, pair_count = reader.u64("tensor count"), reader.u64("metadata count")
    metadata = _metadata(reader, pair_count)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise reader.corrupt(f"general.alignment must be a power of two, not {alignment!r:.40}")
    entries = _entries(reader, tensor_count)
    data_start = -(-reader.at // alignment) * alignment
    tensors = _place(reader, entries, data_start, alignment)
    return GgufFile(path, version, metadata, tensors, alignment, data_start, identity)


class _Reader:
    """A position in the file that never passes its end, nor MAX_HEADER."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size = path, data, size
        self.end = min(size, MAX_HEADER)
        self.at = 0

    def corrupt(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {what}")

    def short(self, what: str) -> CorruptFile:
        if self.end < self.size:
            return self.corrupt(f"{what} reaches past the limit of {MAX_HEADER:,} bytes for a header")
        return self.corrupt(f"{what} reaches past the end of the file, which has {self.size:,} bytes (cut short?)")

    def skip(self, nbytes: int, what: str) -> int:
        """Move on by `nbytes`; returns the position before."""
        start = self.at
        if nbytes > self.end - start:
            raise self.short(what)
        self.at = start + nbytes
        return start

    def u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.data, self.skip(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.data, self.skip(8, what))[0]
        return value

    def string(self, what: str) -> str:
        start = self.skip(self.u64(what), what)
        try:
            return self.data[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} is not UTF-8: {error.reason} at byte {start + error.start}") from error

    def name(self, what: str) -> str:
        """A string of 1 to 65,535 bytes, the format's limit for keys."""
        start = self.at
        name = self.string(what)
        if not 1 <= self.at - start - 8 <= _MAX_NAME:
            raise self.corrupt(f"{what} is " + (f"longer than {_MAX_NAME} bytes" if name else "empty"))
        return name

    def count(self, count: int, least: int, what: str) -> None:
        """Raises CorruptFile unless `count` items of at least `least` bytes each can still follow."""
        if count > (self.end - self.at) // least:
            raise self.short(f"{what}: {count} items")


def _version(reader: _Reader) -> int:
    magic = reader.data[:4]
    reader.skip(4, "magic")
    if magic != b"GGUF":
        raise reader.corrupt(f"not a GGUF file: it starts with {magic!r}, not b'GGUF'")
    version = reader.u32("version")
    if version & 0xFFFF == 0:
        raise reader.corrupt("a big-endian GGUF file (or a broken version): convert it to little endian first")
    if version not in (2, 3):
        raise reader.corrupt(f"GGUF version {version}: only 2 and 3 can be read, convert the model anew")
    return version


def _metadata(reader: _Reader, count: int) -> dict[str, object]:
    reader.count(count, 13, "metadata")
    pairs: dict[str, object] = {}
    for index in range(count):
        key = reader.name(f"metadata key {index}")
        if key in pairs:
            raise reader.corrupt(f"metadata key {key!r:.200} occurs twice")
        pairs[key] = _value(reader, reader.u32(f"type of {key!r:.200}"), f"metadata {key!r:.200}")
    return pairs


def _value(reader: _Reader, kind: int, what: str) -> object:
    if kind == _STRING:
        return reader.string(what)
    if kind == _ARRAY:
        kind, count = reader.u32(what), reader.u64(what)
        if kind == _STRING:
            return _strings(reader, count, what)
        if kind == _ARRAY:
            raise reader.corrupt(f"{what} is an array of arrays, which no model needs")
        return _numbers(reader, kind, count, what)
    return _numbers(reader, kind, 1, what)[0]


def _numbers(reader: _Reader, kind: int, count: int, what: str) -> list[object]:
    code = "B" if kind == _BOOL else _NUMBERS.get(kind)
    if code is None:
        raise reader.corrupt(f"{what} has the unknown value type {kind}")
    width = struct.calcsize(f"<{code}")
    reader.count(count, width, what)
    values = list(struct.unpack_from(f"<{count}{code}", reader.data, reader.skip(count * width, what)))
    if kind != _BOOL:
        return values
    if any(value > 1 for value in values):
        raise reader.corrupt(f"{what} holds a bool that is neither 0 nor 1: {max(values)}")
    return [value == 1 for value in values]


def _strings(reader: _Reader, count: int, what: str) -> list[str]:
    """The hot loop: a vocabulary and its merges are 100,000 strings, most of the time that a header takes."""
    reader.count(count, 8, what)
    data, at, end, length = reader.data, reader.at, reader.end, _U64.unpack_from
    strings: list[str] = []
    try:
        for _ in range(count):
            start = at + 8
            at = start + length(data, at)[0]
            if at > end:
                raise reader.short(f"{what}, string {len(strings)},")
            strings.append(data[start:at].decode())
    except UnicodeDecodeError as error:
        raise reader.corrupt(f"{what}, string {len(strings)}, is not UTF-8: {error.reason}") from error
    except struct.error as error:
        raise reader.short(f"{what}, string {len(strings)},") from error
    reader.at = at
    return strings


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    block: Block
    offset: int


def _entries(reader: _Reader, count: int) -> dict[str, _Entry]:
    reader.count(count, 24, "tensor infos")
    entries: dict[str, _Entry] = {}
    for index in range(count):
        name = reader.name(f"name of tensor {index}")
        what = f"tensor {name!r:.200}"
        if name in entries:
            raise reader.corrupt(f"{what} occurs twice")
        dims = reader.u32(what)
        if dims > _MAX_DIMS:
            raise reader.corrupt(f"{what} has {dims} dimensions, more than {_MAX_DIMS}")
        sizes = [reader.u64(what) for _ in range(dims)]
        if 0 in sizes or math.prod(sizes) > _MAX_COUNT:
            raise reader.corrupt(f"{what} has the impossible shape {sizes[::-1]}")
        number = reader.u32(what)
        if number not in TYPES:
            kind = "was removed from GGUF: convert the model anew" if number in _REMOVED else "is unknown"
            raise reader.corrupt(f"{what} has type {number}, which {kind}")
        entries[name] = _Entry(tuple(sizes[::-1]), TYPES[number], reader.u64(what))
    return entries


def _place(reader: _Reader, entries: dict[str, _Entry], data_start: int, alignment: int) -> dict[str, GgufTensor]:
    """Where each tensor lies. Raises CorruptFile for one that is misaligned, past the end, or over another."""
    tensors: dict[str, GgufTensor] = {}
    for name, (shape, block, offset) in entries.items():
        row = shape[-1] if shape else 1
        if row % block.weights:
            raise reader.corrupt(f"tensor {name!r:.200}: rows of {row} don't divide into {block.name} blocks")
        nbytes = math.prod(shape) // block.weights * block.nbytes
        if offset % alignment:
            raise reader.corrupt(f"tensor {name!r:.200} starts at {offset}, which is not a multiple of {alignment}")
        if data_start + offset + nbytes > reader.size:
            end = data_start + offset + nbytes
            raise reader.corrupt(f"tensor {name!r:.200} ends at byte {end:,}, the file at {reader.size:,} (cut short?)")
        tensors[name] = GgufTensor(name, shape, block.name, data_start + offset, nbytes)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise reader.corrupt(f"tensors {before.name!r} and {after.name!r} overlap")
    return tensors
