"""The native products against the readable ones: every format, at every level of instructions that this machine has."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qkv.kernels.native as module
from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import LEVELS, TYPES, Native, native, reason
from tests.kernels.test_dequantize import EXTREME, random_blocks

EXPORTED = '__attribute__((visibility("default"))) int qkv_answer(void) { return 0; }'


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


def matrix(kind: str, rows: int, blocks: int, seed: int, scale: float | None = None) -> tuple[torch.Tensor, int]:
    """Packed bytes [rows, …] and the width of a row."""
    raw = torch.from_numpy(random_blocks(kind, rows, blocks, seed, scale)).view(rows, -1)
    return raw, blocks * BLOCKS[kind].weights


def product(library: Native, kind: str, raw: torch.Tensor, x: torch.Tensor, width: int) -> torch.Tensor:
    return library.linear(TYPES[kind], raw.data_ptr(), len(raw), width, x, len(x))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x as the kernels see it: int8 in blocks of 32. float64."""
    groups = x.double().view(len(x), -1, 32)
    step = groups.abs().amax(-1, keepdim=True) / 127
    return torch.where(step > 0, (groups / step).round() * step, 0.0).view(x.shape)


@pytest.mark.parametrize("kind", TYPES)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40), blocks=st.integers(1, 9), M=st.integers(1, 8), seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 5), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]), half=st.booleans(),
)  # fmt: skip
def test_products(
    library: Native, level: str, kind: str, rows: int, blocks: int, M: int, seed: int, threads: int, size: float,
    half: bool,
) -> None:  # fmt: skip
    raw, width = matrix(kind, rows, blocks, seed)
    x = torch.randn(M, width, generator=torch.Generator().manual_seed(seed)) * size
    x = x.bfloat16() if half else x
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = product(library, kind, raw, x, width)
    finally:
        torch.set_num_threads(before)
    weights = dequantize(raw.view(-1), kind, (rows, width)).double()
    steps = x.double().abs().view(M, -1, 32).amax(-1) / 127  # a number in the middle may be rounded either way
    slack = (weights.abs().view(rows, -1, 32).amax(-1) @ steps.T).T + 1e-5 * (x.double().abs() @ weights.abs().T)
    assert y.dtype == torch.float32
    assert ((y.double() - rounded(x) @ weights.T).abs() <= slack).all()


@pytest.mark.parametrize("kind", TYPES)
def test_products_are_close_to_unrounded_ones(library: Native, level: str, kind: str) -> None:
    raw, width = matrix(kind, 64, 12, 3)
    x = torch.randn(4, width)
    y, exact = product(library, kind, raw, x, width), x @ dequantize(raw.view(-1), kind, (64, width)).T
    assert (y - exact).norm() / exact.norm() < 0.02
    seen = rounded(x) @ dequantize(raw.view(-1), kind, (64, width)).double().T
    assert (y - seen).norm() / seen.norm() < 1e-3


@pytest.mark.parametrize("scale", EXTREME)
@pytest.mark.parametrize("kind", TYPES)
def test_extreme_scales(library: Native, level: str, kind: str, scale: float) -> None:
    raw, width = matrix(kind, 3, 3, 1, scale)
    x = torch.ones(2, width)
    x[1] = -1
    y, exact = product(library, kind, raw, x, width), x @ dequantize(raw.view(-1), kind, (3, width)).T
    if np.isfinite(scale):
        assert torch.isfinite(y).all()
        assert (y - exact).norm() <= 1e-3 * exact.norm() + 1e-12
    else:
        assert not torch.isfinite(y).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", TYPES)
def test_a_number_that_is_not_finite_is_never_hidden(library: Native, level: str, kind: str, bad: float) -> None:
    raw, width = matrix(kind, 5, 2, 1, 1.0)
    x = torch.ones(3, width)
    x[1, -1] = bad
    y = product(library, kind, raw, x, width)
    assert not torch.isfinite(y[1]).any()
    assert torch.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("kind", TYPES)
def test_zeros(library: Native, level: str, kind: str) -> None:
    raw, width = matrix(kind, 5, 2, 1)
    assert torch.equal(product(library, kind, raw, torch.zeros(2, width), width), torch.zeros(2, 5))
    assert not product(library, kind, torch.zeros_like(raw), torch.randn(2, width), width).any()


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_the_same_alone_and_among_others(library: Native, level: str, kind: str) -> None:
    raw, width = matrix(kind, 70, 5, 2)
    x = torch.randn(7, width)
    together = product(library, kind, raw, x, width)
    for i in range(7):
        torch.testing.assert_close(
            product(library, kind, raw, x[i : i + 1], width)[0], together[i], rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [None, *EXTREME])
@pytest.mark.parametrize("kind", TYPES)
def test_rows_bit_for_bit(library: Native, level: str, kind: str, scale: float | None, dtype: torch.dtype) -> None:
    for blocks in (1, 2, 3, 6):
        raw, width = matrix(kind, 9, blocks, 5, scale)
        expected = dequantize(raw.view(-1), kind, (9, width), dtype)
        for index in (None, torch.tensor([8, 0, 3, 3, 8])):
            count = 9 if index is None else len(index)
            ours = library.rows(raw, kind, width, index, torch.empty(count, width, dtype=dtype))
            theirs = expected if index is None else expected[index]
            assert torch.equal(ours.isnan(), theirs.isnan())
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            known = ~theirs.isnan()
            assert torch.equal(ours.view(bits)[known], theirs.contiguous().view(bits)[known])


def test_a_library_that_is_missing_or_broken_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found() -> tuple[Native | None, str]:
        return module._found.__wrapped__()  # type: ignore[attr-defined,no-any-return]

    monkeypatch.setenv("QKV_NATIVE", "0")
    assert found() == (None, "native kernels are off: QKV_NATIVE is 0")
    monkeypatch.delenv("QKV_NATIVE")
    source = tmp_path / "packed.c"
    source.write_text("this is no C")
    monkeypatch.setattr(module, "_SOURCE", source)
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    assert found()[0] is None
    assert "failed: " in found()[1]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert "there is no C compiler" in found()[1]
    (tmp_path / "_packed.so").write_bytes(b"no library")
    assert "_packed.so" in found()[1]


def test_what_is_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "packed.c"
    source.write_text(EXPORTED.replace("0", "42"))
    monkeypatch.setattr(module, "_SOURCE", source)
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    path, how = module._compiled()
    assert how.startswith("compiled with ")
    assert ctypes.CDLL(str(path)).qkv_answer() == 42
    assert module._compiled() == (path, "compiled earlier")
    source.write_text(EXPORTED.replace("0", "43"))
    assert module._compiled()[0] != path
