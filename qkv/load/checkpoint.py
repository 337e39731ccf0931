"""A checkpoint: tensors by name, whatever file they are in."""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize
from qkv.load.describe import Described
from qkv.load.ggml import ROPE_FACTORS
from qkv.load.gguf import GgufFile
from qkv.load.safetensors import Header, read_weights
from qkv.load.scheme import Scheme, packed_kinds


class Checkpoint(Protocol):
    """What `qkv.load.weights` needs of one. `where`: the file or folder, for messages."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, from headers alone."""

    def read(self, name: str) -> Tensor:
        """One tensor."""

    def packed(self, name: str) -> tuple[Tensor, str] | None:
        """One matrix as it is stored, where it is to stay packed: uint8 [rows, bytes of a row] and ggml's type."""

    def by_output(self, name: str) -> bool:
        """Whether a tensor's rows are outputs even where its family's checkpoints hold such matrices turned."""


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

    def by_output(self, name: str) -> bool:
        return name in self.names and self.checkpoint.by_output(self.names[name])


class FolderCheckpoint:
    """One safetensors file or all shards of a folder. `scheme`: how its matrices are packed; those are dequantized to
    `dtype` as they are read. `keep`: the types of blocks that `packed` gives as they are. `kinds`: what each tensor is
    stored as, the type of its blocks or its dtype.

    WeightError: what is stored is not what the scheme says."""

    def __init__(
        self,
        where: str,
        headers: Iterable[Header],
        scheme: Scheme | None = None,
        dtype: torch.dtype = torch.float32,
        keep: Collection[str] = (),
    ) -> None:
        self.where, self.dtype, self.keep = where, dtype, keep
        self.home = {name: header for header in headers for name in header.tensors}
        stored = {name: header.tensors[name] for name, header in self.home.items()}
        self.blocks = packed_kinds(where, stored, scheme)
        self.kinds = {name: self.blocks.get(name, tensor.dtype) for name, tensor in stored.items()}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self._shape(name) for name in self.home}

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.home[name].tensors[name].shape
        if name not in self.blocks:
            return shape
        block = BLOCKS[self.blocks[name]]
        return shape[0], shape[1] // block.nbytes * block.weights

    def read(self, name: str) -> Tensor:
        stored = self.home[name].read(name)
        if name not in self.blocks:
            return stored
        return dequantize(stored.view(-1), self.blocks[name], self._shape(name), self.dtype)

    def packed(self, name: str) -> tuple[Tensor, str] | None:
        """A matrix as uint8 [outputs, bytes of a row] and its type; None: it is plain, or of another type."""
        kind = self.blocks.get(name)
        if kind is None or kind not in self.keep:
            return None
        stored = self.home[name].read(name)
        return (stored.clone() if stored.data_ptr() % 2 else stored), kind  # the kernels read 16-bit scales

    def by_output(self, name: str) -> bool:
        return name in self.blocks


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

    def by_output(self, name: str) -> bool:
        return False  # a family's table for GGUF says how each lies


def open_checkpoint(described: Described, dtype: torch.dtype | None = None) -> FolderCheckpoint | GgufCheckpoint:
    """A described model's tensors. `dtype`: what packed ones are dequantized to (None: float32)."""
    dtype = dtype or torch.float32
    if described.gguf is not None:
        return GgufCheckpoint(described.gguf, dtype)
    assert described.folder is not None
    return FolderCheckpoint(str(described.folder.root), read_weights(described.folder), described.scheme, dtype)
