"""The native library of `packed.c`: found, or compiled once, and called. Without it the torch path runs, and `reason`
says why.

`pip install` builds it with the platform's compiler where there is one. A source checkout compiles it at the first use,
into the user's cache, under the hash of source and compiler flags.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

TYPES = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}  # as in packed.c
LEVELS = ("portable", "avx2", "avx512")

_SOURCE = Path(__file__).with_name("packed.c")
_FLAGS = ("-O2", "-std=c11", "-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-fno-math-errno",
          "-fno-trapping-math", "-ffp-contract=off")  # fmt: skip
_PATIENCE = 120  # seconds for the compiler


class Native:
    """The library's functions. `level`: the instructions that it uses, one of LEVELS."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = ctypes.CDLL(str(path))
        number, whole, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
        self._use = library.qkv_use
        self._use.argtypes, self._use.restype = [number], ctypes.c_char_p
        self._linear = library.qkv_linear
        self._linear.argtypes = [number, pointer, whole, whole, pointer, number, whole, pointer, number]
        self._dequantize = library.qkv_dequantize
        self._dequantize.argtypes = [number, pointer, whole, pointer, whole, pointer, number, number]
        self._dequantize.restype = None
        self.level = self.use(None)

    def use(self, level: str | None) -> str:
        """Use the instructions of a level, or of the best below it that this processor has; None: the best. Gives the
        level taken. (The level is the whole process's.)"""
        name: bytes = self._use(-1 if level is None else LEVELS.index(level))
        self.level = name.decode()
        return self.level

    def linear(self, number: int, address: int, N: int, K: int, x: Tensor, M: int) -> Tensor:
        """x [..., K], M rows of float32 or bfloat16, times a packed W [N, K] of this type at this address, transposed:
        [..., N] float32. (The numbers of the matrix are given, not the matrix: this is called for each matrix of each
        token, and asking a tensor for them takes as long as a small product.)"""
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], N), dtype=torch.float32)
        threads = torch.get_num_threads()
        if self._linear(number, address, N, K, x.data_ptr(), x.dtype is torch.bfloat16, M, out.data_ptr(), threads):
            raise MemoryError(f"no memory for {M} rows of {K} numbers")
        return out

    def rows(self, blocks: Tensor, type: str, width: int, index: Tensor | None, out: Tensor) -> Tensor:
        """Rows of blocks as plain numbers into out [rows, K] float32 or bfloat16: those of index (int64, contiguous,
        within the matrix: nobody checks), or the first ones. Gives `out`."""
        at = index.data_ptr() if index is not None else None
        self._dequantize(
            TYPES[type], blocks.data_ptr(), width, at, out.shape[0], out.data_ptr(), out.dtype == torch.bfloat16,
            torch.get_num_threads(),
        )  # fmt: skip
        return out


@cache
def native() -> Native | None:
    """The library, or None where there is none; `reason` then says why."""
    return _found()[0]


def reason() -> str:
    """One sentence: which native path is used, or why none is."""
    return _found()[1]


@cache
def _found() -> tuple[Native | None, str]:
    if os.environ.get("QKV_NATIVE") == "0":
        return None, "native kernels are off: QKV_NATIVE is 0"
    if sys.byteorder != "little":
        return None, "native kernels need a little-endian processor"
    try:
        built = sorted(_SOURCE.parent.glob("_packed*.so")) + sorted(_SOURCE.parent.glob("_packed*.pyd"))
        path, how = (built[0], "built with the package") if built else _compiled()
        library = Native(path)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        return None, f"no native kernels: {error}"
    return library, f"native kernels for {library.level}, {how} ({path})"


def _compiled() -> tuple[Path, str]:
    """The library in the user's cache, compiled there if it isn't yet. OSError: it can't be."""
    key = hashlib.sha256(_SOURCE.read_bytes() + " ".join([*_FLAGS, sys.platform, os.uname().machine]).encode())
    path = _cache() / f"packed-{key.hexdigest()[:16]}.so"
    if path.is_file():
        return path, "compiled earlier"
    named = (shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang"))
    compiler = next((found for found in named if found), None)
    if compiler is None:
        raise OSError("there is no C compiler (cc, gcc or clang) to build them with")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "packed.so"
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(made)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        if ran.returncode:
            raise OSError(f"{compiler} failed: {ran.stderr.strip()[:400]}")
        os.replace(made, path)
    return path, f"compiled with {compiler}"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    own = os.environ.get("QKV_CACHE") or (str(Path(home) / "qkv") if home else str(Path.home() / ".cache" / "qkv"))
    return Path(own) / "kernels"
