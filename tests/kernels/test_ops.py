"""The product as an operator: what torch's own checks say of it, and that a compiled function holds it."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import TYPES, native, reason, shape_of
from qkv.kernels.ops import packed_linear
from tests.kernels.test_dequantize import random_blocks


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [6, 16, 35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_and_numbers(kind: str, rows: int, dtype: torch.dtype) -> None:
    library = native()
    assert library is not None, reason()
    raw = torch.from_numpy(random_blocks(kind, rows, 4, 1)).view(rows, -1)
    tiles, weight = library.pack(kind, raw), dequantize(raw.view(-1), kind, (rows, shape_of(kind, raw)[1]))
    x = torch.randn(2, 3, weight.shape[1]).to(dtype)
    torch.library.opcheck(packed_linear, (x, tiles, kind, rows), test_utils=("test_schema", "test_faketensor"))
    y = packed_linear(x, tiles, kind, rows)
    assert (y.shape, y.dtype) == ((2, 3, rows), dtype)
    exact = x.float() @ weight.T
    assert (y.float() - exact).norm() / exact.norm() < 0.02


def test_a_width_that_does_not_fit_is_refused_where_a_graph_is_made() -> None:
    with FakeTensorMode():
        x, tiles = torch.empty(2, 64), torch.zeros(16 * 3 * 18, dtype=torch.uint8)
        with pytest.raises(AssertionError, match="x has width 64, W 96"):
            packed_linear(x, tiles, "Q4_0", 9)
