"""The native library: found, or compiled once (`build.py`), and called. Without it the torch path runs, and `reason`
says why."""

import ctypes
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from qkv.kernels import build
from qkv.kernels.blocks import BLOCKS
from qkv.paths import cache_root

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}  # as in qkv.h
TILE = 16  # rows of a matrix that lie together
_OFF = ("0", "off", "no", "false")  # of QKV_NATIVE
LEVELS = ("portable", "avx2", "avx512", "amx")


class Native:
    """The library's functions. `level`: the instructions that it uses, one of LEVELS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = library = ctypes.CDLL(str(path))
        number, whole, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
        self._use, self._bulk = library.qkv_use, library.qkv_bulk
        self._use.argtypes, self._use.restype = [number], ctypes.c_char_p
        self._pack = library.qkv_pack
        self._pack.argtypes, self._pack.restype = [number, pointer, whole, whole, pointer, number, number], None
        self._linear = library.qkv_linear
        self._linear.argtypes = [number, pointer, whole, whole, pointer, whole, pointer, number, number]
        self._dequantize = library.qkv_dequantize
        self._dequantize.argtypes = [number, pointer, whole, pointer, whole, pointer, number, number]
        self.level = self.use(None)

    def use(self, level: str | None) -> str:
        """Use the instructions of a level, or of the best below it that this processor has; None: the best. Gives the
        level taken. (The level is the whole process's.)"""
        name: bytes = self._use(-1 if level is None else LEVELS.index(level))
        self.level = name.decode()
        return self.level

    @property
    def bulk(self) -> bool:
        """Has this level a product of its own for the rows of prompts (in bfloat16)?"""
        return bool(self._bulk())

    def pack(self, kind: str, blocks: Tensor) -> Tensor:
        """Rows of a file's blocks, uint8 [N, bytes of a row], as tiles of 16 rows (qkv.h): the bytes [tiles' bytes]."""
        blocks, (N, K) = blocks.contiguous(), shape_of(kind, blocks)
        tiles = blocks.new_empty(-(-N // TILE) * TILE * blocks.shape[1])
        if N % TILE:
            tiles[-TILE * blocks.shape[1] :].zero_()  # the rows of the last tile that aren't there
        self._pack(TYPES[kind], blocks.data_ptr(), N, K, tiles.data_ptr(), 0, torch.get_num_threads())
        return tiles

    def unpack(self, kind: str, tiles: Tensor, N: int) -> Tensor:
        """The rows that tiles were made of: uint8 [N, bytes of a row]."""
        blocks = tiles.new_empty(N, len(tiles) // (-(-N // TILE) * TILE))
        K = shape_of(kind, blocks)[1]
        self._pack(TYPES[kind], blocks.data_ptr(), N, K, tiles.data_ptr(), 1, torch.get_num_threads())
        return blocks

    def linear(self, number: int, address: int, N: int, K: int, x: Tensor, M: int, prompt: bool = False) -> Tensor:
        """x [..., K], M rows, times W [N, K] whose tiles of this type are at this address, transposed: [..., N]
        float32; `prompt`: by the product for the rows of prompts, where there is one. (The numbers of the matrix are
        given, not the matrix: this is called for each matrix of each token, and asking a tensor for them takes as long
        as a small product.)"""
        x = x.float().contiguous()
        out = x.new_empty((*x.shape[:-1], N))
        if self._linear(number, address, N, K, x.data_ptr(), M, out.data_ptr(), prompt, torch.get_num_threads()):
            raise MemoryError(f"no memory for {M} rows of {K} numbers")
        return out

    def rows(self, kind: str, tiles: Tensor, K: int, index: Tensor | None, out: Tensor) -> Tensor:
        """Rows of W as plain numbers into out [rows, K] float32 or bfloat16: those of index (int64, contiguous,
        within the matrix: nobody checks), or the first ones. Gives `out`."""
        at = index.data_ptr() if index is not None else None
        failed = self._dequantize(
            TYPES[kind], tiles.data_ptr(), K, at, out.shape[0], out.data_ptr(), out.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError(f"no memory for {out.shape[0]} rows of {K} numbers")
        return out


def shape_of(kind: str, blocks: Tensor) -> tuple[int, int]:
    """[N, K] of the matrix that rows of blocks hold."""
    block = BLOCKS[kind]
    return blocks.shape[0], blocks.shape[1] // block.nbytes * block.weights


@cache
def native() -> Native | None:
    """The library, or None where there is none; `reason` then says why."""
    return _found()[0]


def reason() -> str:
    """One sentence: which native path is used, or why none is."""
    return _found()[1]


@cache
def _found() -> tuple[Native | None, str]:
    if (said := os.environ.get("QKV_NATIVE", "1")).lower() in _OFF:
        return None, f"native kernels are off: QKV_NATIVE is {said}"
    if sys.byteorder != "little":
        return None, "native kernels need a little-endian processor"
    wrong = []
    for find in (_packaged, _compiled):
        try:
            if (found := find()) is not None:
                path, how = found
                library = Native(path)
                return library, f"native kernels for {library.level}, {how} ({path})"
        except (OSError, AttributeError, ValueError, subprocess.SubprocessError, RuntimeError) as error:
            wrong.append(str(error))
    return None, f"no native kernels: {'; '.join(wrong)}"


def _packaged() -> tuple[Path, str] | None:
    path = build.packaged()
    return (path, "built with the package") if path else None


def _compiled() -> tuple[Path, str]:
    return build.compiled(cache_root() / "kernels")
