"""Read and write safetensors, strictly: https://huggingface.co/docs/safetensors, "Format". No torch at import.

The file is `u64 N`, a JSON header of N bytes, then the tensors' bytes without hole or overlap; all little endian.
Everything in the header is checked before anything is allocated by it, and the message names the tensor at fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from qkv.errors import CorruptFile, NotFound, WeightError
from qkv.load.folder import INDEX, MAX_INDEX, SINGLE, FolderFiles, inside, shard_names
from qkv.load.mapped import Identity, identify, map_bytes, open_regular
from qkv.strict_json import parse_json, read_json
from qkv.write import renamed_when_whole, write_json

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER = 100_000_000  # bytes; the limit of the format
MAX_DIMS = 64  # as numpy's and well above torch's practice
FORMAT = {"format": "pt"}  # metadata without which transformers refuses a file
_MAX_BYTES = 2**63 - 1

DTYPES: dict[str, tuple[str, int]] = {  # the format's name: torch's name and bytes per element
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1), "C64": ("complex64", 8),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip

_LOOKS_LIKE = (
    (b"PK\x03\x04", "a zip archive: a pickled PyTorch checkpoint, which qkv doesn't open"),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle, which qkv doesn't open"),
    (b"<", "HTML: failed download?"),
    (b"{", "JSON: failed download?"),
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"GGUF", "GGUF: name it .gguf"),
    (b"\x89HDF", "HDF5"),
)


class TensorInfo(NamedTuple):
    """What the header says of one tensor; `start` and `end` count bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of one file."""

    path: Path
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity = field(repr=False)

    def read(self, name: str) -> Tensor:
        """One tensor, in the file's dtype: the file's own pages, copied only when written to (never to the file).

        Raises NotFound for a name that the file lacks, CorruptFile if the file was changed since.
        """
        import torch

        if name not in self.tensors:
            raise NotFound(f"{self.path} has no tensor {name!r}")
        dtype, shape, start, end = self.tensors[name]
        raw = map_bytes(self.path, self.identity, start, end - start)
        if dtype == "BOOL" and bool(raw.gt(1).any()):
            raise CorruptFile(f"{self.path}: tensor {name!r} is BOOL and holds a byte that is neither 0 nor 1")
        if raw.data_ptr() % DTYPES[dtype][1]:  # writers pad the header to 8 bytes, but need not
            raw = raw.clone()
        return raw.view(getattr(torch, DTYPES[dtype][0])).view(shape)


def read_header(path: str | Path) -> Header:
    """Check and read a file's header. Raises CorruptFile naming the file and the tensor at fault, or NotFound."""
    path = Path(path)
    with open_regular(path) as file:
        identity = identify(file)
        raw = _header_bytes(path, file, identity.size)
    entries = parse_json(raw, where=f"{path}: header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFile(f"{path}: __metadata__ must map strings to strings")
    data_start = 8 + len(raw)
    tensors = {name: _tensor(path, name, entry, data_start) for name, entry in entries.items()}
    _check_layout(path, tensors, data_start, identity.size)
    return Header(path, tensors, metadata, identity)


def read_shards(index: Path) -> tuple[Header, ...]:
    """The headers of all shards of an index, which together must hold what it lists, each tensor once.

    Raises one CorruptFile that lists every missing or broken shard and every tensor that is missing, unlisted or in two
    shards; and what `folder.shard_names` and `folder.inside` raise, before any shard is opened.
    """
    paths = [inside(index.parent, name) for name in shard_names(index)]
    headers: list[Header] = []
    problems: list[str] = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except (CorruptFile, NotFound) as error:
            problems.append(str(error))
    problems += _differences(read_json(index, limit=MAX_INDEX)["weight_map"], headers)
    if problems:
        raise CorruptFile("\n  ".join([f"{index}: {len(problems)} problem(s) with its shards:", *problems]))
    return tuple(headers)


def read_weights(files: FolderFiles) -> tuple[Header, ...]:
    """The headers of a folder's weights, one file or all shards. Raises as `read_header` and `read_shards`."""
    return read_shards(files.index) if files.index else tuple(map(read_header, files.weights))


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = FORMAT) -> None:
    """Write one file. It has its final name only once it is whole, flushed to the disk, and readable again.

    Raises WeightError for a tensor that has no bytes to write (meta, sparse), no dtype in the format, a reserved name,
    or memory shared with another one (give tied weights once); OSError where the disk is full or can't be written.
    """
    path = Path(path)
    with renamed_when_whole(path) as temporary:
        _write(temporary, tensors, metadata)


def save_sharded(folder: str | Path, tensors: Mapping[str, Tensor], max_shard_bytes: int = 5 * 10**9) -> list[Path]:
    """Write `model.safetensors`, or an index and shards of up to `max_shard_bytes` (a larger tensor has its own).

    Returns the files with tensors. Raises as `save_safetensors` does.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(tensors, max_shard_bytes)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i + 1, len(shards)) for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_safetensors(folder / name, shard)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / INDEX, index)
    return [folder / name for name in names]


def _header_bytes(path: Path, file: BinaryIO, size: int) -> bytes:
    if size < 8:
        raise CorruptFile(f"{path}: {size} bytes are too few for a safetensors file (download cut short?)")
    head = file.read(64)
    length = int.from_bytes(head[:8], "little")
    if 2 <= length <= min(MAX_HEADER, size - 8) and head[8:9] == b"{":
        file.seek(8)
        return file.read(length)
    if length > MAX_HEADER:
        for start, meaning in _LOOKS_LIKE:
            if head.lstrip().startswith(start):
                raise CorruptFile(f"{path}: not a safetensors file (looks like {meaning})")
        raise CorruptFile(f"{path}: not a safetensors file: a header of {length} bytes, and the limit is {MAX_HEADER}")
    if length > size - 8:
        raise CorruptFile(f"{path}: a header of {length} bytes, but only {size - 8} follow (download cut short?)")
    raise CorruptFile(f"{path}: not a safetensors file: its header of {length} bytes does not start with '{{'")


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    where = f"{path}: tensor {name!r:.200}"
    if not name.isascii() and re.search("[\ud800-\udfff]", name):
        raise CorruptFile(f"{where}: the name is not valid Unicode (a lone surrogate)")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"{where} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CorruptFile(f"{where} has the unknown dtype {dtype!r:.40}: qkv reads {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise CorruptFile(f"{where}: shape must be at most {MAX_DIMS} whole numbers from 0, not {shape!r:.80}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFile(f"{where}: data_offsets must be [start, end], not {offsets!r:.80}")
    nbytes = DTYPES[dtype][1]
    for size in shape:
        nbytes *= size
        if nbytes > _MAX_BYTES:
            raise CorruptFile(f"{where}: shape {shape!r:.80} overflows 64 bits")
    if nbytes != offsets[1] - offsets[0]:
        raise CorruptFile(f"{where}: {dtype} {shape!r:.80} needs {nbytes} bytes, and has {offsets[1] - offsets[0]}")
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_BYTES for value in values)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_start: int, size: int) -> None:
    """Raises CorruptFile unless the tensors fill the file from `data_start` to `size` without hole or overlap."""
    at, last = data_start, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.start < at:
            raise CorruptFile(f"{path}: tensors {last!r} and {name!r} overlap")
        if tensor.start > at:
            raise CorruptFile(f"{path}: {tensor.start - at} bytes before tensor {name!r} belong to no tensor")
        if tensor.end > size:
            raise CorruptFile(f"{path}: tensor {name!r} ends at byte {tensor.end}, the file at {size} (cut short?)")
        at, last = tensor.end, name
    if at != size:
        raise CorruptFile(f"{path}: {size - at} bytes after the last tensor belong to no tensor")


def _differences(weight_map: Mapping[str, str], headers: Sequence[Header]) -> Iterator[str]:
    """Where the index and the readable shards disagree, in words."""
    held = {header.path.name: header.tensors for header in headers}
    for name, shard in weight_map.items():
        if shard in held and name not in held[shard]:
            yield f"{shard} lacks the tensor {name!r} that the index lists for it"
    homes: dict[str, str] = {}
    for shard, tensors in held.items():
        for name in tensors:
            if name not in weight_map:
                yield f"{shard} holds the tensor {name!r}, which the index does not list"
            if name in homes:
                yield f"tensor {name!r} is in {homes[name]} and in {shard}"
            homes[name] = shard


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path, dict(metadata))
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightError(f"these tensors can't be saved as safetensors: {error}") from error
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error
    try:
        written = read_header(path).tensors.keys()
    except CorruptFile as error:
        raise WeightError(f"a tensor has a name that safetensors can't hold: {error}") from error
    if written != tensors.keys():
        raise WeightError(f"safetensors can't hold the name {sorted(tensors.keys() - written)}")


def _split(tensors: Mapping[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = most
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.safetensors"
