"""The native products against exact ones: every format, at every level of instructions that this machine has."""

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qkv.kernels.native as module
from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import LEVELS, TILE, TYPES, Native, native, reason
from tests.kernels.exact import SIZES, any_blocks, any_rows, finite_blocks, product, slack
from tests.kernels.test_dequantize import EXTREME, random_blocks


@pytest.fixture(scope="module")
def library() -> Native:
    found = native()
    assert found is not None, reason()
    return found


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest, library: Native) -> Iterator[str]:
    """Each level; where the processor lacks one, the best that it has is tested again."""
    library.use(request.param)
    yield library.level
    library.use(None)


class Matrix:
    """Packed bytes [N, …] of a type, in tiles too."""

    def __init__(self, library: Native, kind: str, raw: np.ndarray) -> None:
        self.library, self.kind, self.raw = library, kind, torch.from_numpy(raw)
        self.tiles = library.pack(kind, self.raw)
        self.N, self.K = len(raw), raw.shape[1] // BLOCKS[kind].nbytes * BLOCKS[kind].weights

    def product(self, x: torch.Tensor, address: int | None = None) -> torch.Tensor:
        at = self.tiles.data_ptr() if address is None else address
        return self.library.linear(TYPES[self.kind], at, self.N, self.K, x, x.numel() // self.K)

    def times(self, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return self.product(x)
        finally:
            torch.set_num_threads(before)

    def plain(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return dequantize(self.raw.view(-1), self.kind, (self.N, self.K), dtype)


def matrix(library: Native, kind: str, N: int, blocks: int, seed: int = 0, scale: float | None = None) -> Matrix:
    return Matrix(library, kind, random_blocks(kind, N, blocks, seed, scale))


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=25, deadline=None)
@given(
    N=st.integers(1, 70), blocks=st.integers(1, 7), sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=9),
    seed=st.integers(0, 2**32 - 1), threads=st.integers(1, 4), finite=st.booleans(),
)  # fmt: skip
def test_any_bytes_times_any_numbers(
    library: Native, level: str, kind: str, N: int, blocks: int, sizes: list[str], seed: int, threads: int, finite: bool
) -> None:
    raw = (finite_blocks if finite else any_blocks)(kind, N, blocks, seed)
    w = Matrix(library, kind, raw)
    x = any_rows(sizes, w.K, seed)
    y = w.times(torch.from_numpy(x), threads).numpy()
    exact, terms, unsure = product(kind, raw, x)
    assert y.dtype == np.float32
    assert y.shape == exact.shape
    assert not np.isfinite(y[~np.isfinite(exact)]).any(), "what isn't finite is hidden"
    # beyond, float32 may overflow on the way: in s · Σ q of 32 numbers, or in the sum of all terms
    small = np.isfinite(exact) & (terms < 1e38) & (np.abs(x).max(1, keepdims=True) < 5e36)
    assert np.isfinite(y[small]).all()
    assert (np.abs(y[small] - exact[small]) <= slack(w.K) * terms[small] + unsure[small] + 1e-37).all()


@pytest.mark.parametrize("kind", TYPES)
def test_products_are_close_to_unrounded_ones(library: Native, level: str, kind: str) -> None:
    w = matrix(library, kind, 64, 12, 3)
    x = torch.randn(4, w.K)
    y, exact = w.times(x), x @ w.plain().T
    assert (y - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("scale", EXTREME)
@pytest.mark.parametrize("kind", TYPES)
def test_extreme_scales(library: Native, level: str, kind: str, scale: float) -> None:
    w = matrix(library, kind, 3, 3, 1, scale)
    x = torch.ones(2, w.K)
    x[1] = -1
    y, exact = w.times(x), x @ w.plain().T
    if np.isfinite(scale):
        assert torch.isfinite(y).all()
        assert (y - exact).norm() <= 1e-3 * exact.norm() + 1e-12
    else:
        assert not torch.isfinite(y).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", TYPES)
def test_a_number_that_is_not_finite_is_never_hidden(library: Native, level: str, kind: str, bad: float) -> None:
    w = matrix(library, kind, 5, 2, 1, 1.0)
    x = torch.ones(3, w.K)
    x[1, -1] = bad
    y = w.times(x)
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("kind", TYPES)
def test_zeros(library: Native, level: str, kind: str) -> None:
    w = matrix(library, kind, 5, 2, 1)
    assert torch.equal(w.times(torch.zeros(2, w.K)), torch.zeros(2, 5))
    assert not Matrix(library, kind, np.zeros_like(w.raw.numpy())).times(torch.randn(2, w.K)).any()


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_the_same_alone_among_others_and_with_any_threads(library: Native, level: str, kind: str) -> None:
    w = matrix(library, kind, 70, 5, 2)
    x = torch.randn(37, w.K)
    together = w.times(x, threads=3)
    for threads in (1, 2, 4):
        assert torch.equal(w.times(x, threads), together)
    for size in (1, 7, 8, 16, 20):  # of which some are taken in blocks of 8, or of 16
        assert torch.equal(torch.cat([w.times(part) for part in x.split(size)]), together)


@pytest.mark.parametrize("kind", TYPES)
def test_nothing_beyond_the_tiles_is_read(library: Native, level: str, kind: str) -> None:
    """The tiles end where a page begins that can't be read; the prefetches that run ahead may not fault either."""
    libc = ctypes.CDLL(None, use_errno=True)
    for N, blocks in ((16, 1), (16, 3), (48, 5)):
        w = matrix(library, kind, N, blocks, 4)
        room = -(-len(w.tiles) // mmap.PAGESIZE) * mmap.PAGESIZE
        with mmap.mmap(-1, room + mmap.PAGESIZE) as pages:
            begin = ctypes.addressof(ctypes.c_char.from_buffer(pages))
            assert libc.mprotect(ctypes.c_void_p(begin + room), mmap.PAGESIZE, 0) == 0, "mprotect failed"
            at = begin + room - len(w.tiles)
            ctypes.memmove(at, w.tiles.data_ptr(), len(w.tiles))
            for M in (1, 2, 3, 8):
                x = torch.randn(M, w.K)
                assert torch.equal(w.product(x, at), w.product(x))
            libc.mprotect(ctypes.c_void_p(begin + room), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("N", [1, 15, 16, 17, 40])
def test_tiles_and_back(library: Native, kind: str, N: int) -> None:
    raw = any_blocks(kind, N, 3, N)
    tiles = library.pack(kind, torch.from_numpy(raw))
    assert len(tiles) == -(-N // TILE) * TILE * raw.shape[1]
    assert torch.equal(library.unpack(kind, tiles, N), torch.from_numpy(raw))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("N", [1, 15, 16, 17])
def test_rows_that_are_not_there_are_zero_bytes(
    library: Native, kind: str, N: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(tensor: torch.Tensor, *size: int) -> torch.Tensor:  # memory as another left it
        return tensor.new_full(size, 255)

    blocks, rows = torch.from_numpy(any_blocks(kind, N, 3, N)), -(-N // TILE) * TILE
    monkeypatch.setattr(torch.Tensor, "new_empty", used)
    whole = library.unpack(kind, library.pack(kind, blocks), rows)
    assert torch.equal(whole, torch.cat((blocks, blocks.new_zeros(rows - N, blocks.shape[1]))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, *EXTREME])
@pytest.mark.parametrize("kind", TYPES)
def test_rows_bit_for_bit(library: Native, kind: str, scale: float | None, dtype: torch.dtype) -> None:
    for blocks in (1, 2, 3, 6):
        w = matrix(library, kind, 19, blocks, 5, scale)
        for index in (None, torch.tensor([18, 0, 3, 3, 16])):
            count = 19 if index is None else len(index)
            ours = library.rows(kind, w.tiles, w.K, index, torch.empty(count, w.K, dtype=dtype))
            theirs = w.plain(dtype) if index is None else w.plain(dtype)[index]
            assert torch.equal(ours.isnan(), theirs.isnan())
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            known = ~theirs.isnan()
            assert torch.equal(ours.view(bits)[known], theirs.contiguous().view(bits)[known])


def test_many_python_threads_at_once(library: Native) -> None:
    matrices = [matrix(library, kind, 300, 4, i) for i, kind in enumerate([*TYPES] * 3)]
    jobs = [(w, torch.randn(1 + i % 5, w.K)) for i, w in enumerate(matrices)]
    expected = [w.times(x) for w, x in jobs]

    def call(job: tuple[Matrix, torch.Tensor]) -> torch.Tensor:
        torch.set_num_threads(3)  # each Python thread has a number of its own
        return job[0].product(job[1])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(call, jobs), expected, strict=True))


FORKS = """
import os, torch
from qkv.kernels.native import native, TYPES
library = native()
torch.set_num_threads(3)
blocks = torch.randint(128, (640, 4 * 18), dtype=torch.uint8) & 0x3f
tiles = library.pack("Q4_0", blocks)
x = torch.randn(3, 128)
def times():
    return library.linear(TYPES["Q4_0"], tiles.data_ptr(), 640, 128, x, 3)
expected = times()
for _ in range(20):
    assert torch.equal(times(), expected)
    child = os.fork()
    if not child:
        same = all(torch.equal(times(), expected) for _ in range(20))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
assert torch.equal(times(), expected)
"""


def test_a_child_that_was_forked_has_threads_of_its_own() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


def found() -> tuple[Native | None, str]:
    answer: tuple[Native | None, str] = module._found.__wrapped__()  # type: ignore[attr-defined]
    return answer


def test_kernels_that_are_off_missing_or_broken_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for off in ("0", "off", "False"):
        monkeypatch.setenv("QKV_NATIVE", off)
        assert found() == (None, f"native kernels are off: QKV_NATIVE is {off}")
    monkeypatch.delenv("QKV_NATIVE")
    broken = tmp_path / "_packed_1.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(module.build, "packaged", lambda: broken)

    def compiled(cache: Path) -> tuple[Path, str]:
        raise OSError("there is no C compiler")

    monkeypatch.setattr(module.build, "compiled", compiled)
    library, why = found()
    assert library is None
    assert why.startswith(f"no native kernels: {broken}: ")
    assert why.endswith("; there is no C compiler")
    monkeypatch.setattr(module.build, "packaged", lambda: None)
    monkeypatch.setattr(module.build, "compiled", lambda cache: (tmp_path / "gone.so", "compiled earlier"))
    assert "gone.so" in found()[1]
    monkeypatch.setattr(sys, "byteorder", "big")
    assert found() == (None, "native kernels need a little-endian processor")


def test_a_library_that_pip_built_comes_first(library: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.build, "packaged", lambda: library.path)
    assert found()[1] == f"native kernels for {library.use(None)}, built with the package ({library.path})"
    monkeypatch.setattr(module.build, "packaged", lambda: Path("/nowhere/_packed.so"))
    monkeypatch.setattr(module.build, "compiled", lambda cache: (library.path, "compiled earlier"))
    assert found()[1].endswith(f", compiled earlier ({library.path})")


def test_without_a_home_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QKV_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(module.build, "packaged", lambda: None)
    assert found()[1].startswith("no native kernels: Could not determine home directory")
