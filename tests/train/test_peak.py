"""The measured peak of matrix products."""

import time

import pytest
import torch

from qkv.train import peak


@pytest.mark.parametrize("dtype", [torch.float32, "bfloat16"])
def test_it_is_a_rate_that_is_reached(dtype: torch.dtype | str) -> None:
    start = time.perf_counter()
    rate = peak.gemm_peak(dtype, seconds=0.05)
    assert time.perf_counter() - start < 5
    assert 1e7 < rate < 1e16


def test_it_is_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: products of 512 take 1 ms, once 0.5 ms; larger ones too long."""
    took = {256: [9.0, 1e-3, 1e-3], 512: [1e-3, 5e-4, 1e-3], 1024: [1.0, 1.0, 1.0]}
    monkeypatch.setattr(peak, "_product", lambda a, out: took[len(a)].pop(0))
    monkeypatch.setattr(peak.time, "perf_counter", iter([0.0, 0.0, 0.0, 9.0, 9.0]).__next__)
    assert peak.gemm_peak("float32") == 2 * 512**3 / 5e-4
