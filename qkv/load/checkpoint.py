"""A checkpoint: tensors by name, whatever file they are in."""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from qkv.load.describe import Described
from qkv.load.ggml import ROPE_FACTORS
from qkv.load.gguf import GgufFile
from qkv.load.safetensors import Header, read_header, read_shards


class Checkpoint(Protocol):
    """What `qkv.load.weights` needs of one. `where`: the file or folder, for messages."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, from headers alone."""

    def read(self, name: str) -> Tensor:
        """One tensor."""

    def packed(self, name: str) -> tuple[Tensor, str] | None:
        """One matrix as it is stored, where it is to stay packed: uint8 [rows, bytes of a row] and ggml's type."""


class Renamed:
    """A checkpoint whose tensors have other names: `names`, from the new to the stored one."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self.where, self.checkpoint, self.names = checkpoint.where, checkpoint, names

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        stored = self.checkpoint.shapes()
        return {new: stored[old] for new, old in self.names.items()}

    def read(self, name: str) -> Tensor:
        return self.checkpoint.read(self.names[name])

    def packed(self, name: str) -> tuple[Tensor, str] | None:
        return self.checkpoint.packed(self.names[name])


class FolderCheckpoint:
    """One safetensors file or all shards of a folder. `kinds`: what each tensor is stored as."""

    def __init__(self, where: str, headers: Iterable[Header]) -> None:
        self.where = where
        self.home = {name: header for header in headers for name in header.tensors}
        self.kinds = {name: header.tensors[name].dtype for name, header in self.home.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: header.tensors[name].shape for name, header in self.home.items()}

    def read(self, name: str) -> Tensor:
        return self.home[name].read(name)

    def packed(self, name: str) -> None:
        return None


class GgufCheckpoint:
    """One GGUF file. Tensors are dequantized to `dtype` as they are read, but for those in float32: `fill` rounds them
    after its transforms, which may subtract (Gemma's norms). `keep`: the types that `packed` gives as they are."""

    def __init__(self, file: GgufFile, dtype: torch.dtype, keep: Collection[str] = ()) -> None:
        self.where, self.file, self.dtype, self.keep = str(file.path), file, dtype, keep
        self.kinds = {name: tensor.type for name, tensor in file.tensors.items() if name != ROPE_FACTORS}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self.file.tensors[name].shape for name in self.kinds}

    def read(self, name: str) -> Tensor:
        return self.file.read(name, torch.float32 if self.kinds[name] == "F32" else self.dtype)

    def packed(self, name: str) -> tuple[Tensor, str] | None:
        """A matrix as uint8 [rows, bytes of a row] and its type; None: it is of another type, or no matrix."""
        tensor = self.file.tensors[name]
        if tensor.type not in self.keep or len(tensor.shape) != 2:
            return None
        return self.file.raw(name).view(tensor.shape[0], -1), tensor.type


def open_checkpoint(
    described: Described, dtype: torch.dtype | None = None, keep: Collection[str] = ()
) -> FolderCheckpoint | GgufCheckpoint:
    """A described model's tensors. `dtype`: what a GGUF file's are dequantized to (None: float32); `keep`: the types of
    it that stay packed."""
    if described.gguf is not None:
        return GgufCheckpoint(described.gguf, dtype or torch.float32, keep)
    files = described.folder
    assert files is not None
    headers = read_shards(files.index) if files.index else map(read_header, files.weights)
    return FolderCheckpoint(str(files.root), headers)
