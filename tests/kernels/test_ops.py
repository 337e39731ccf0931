"""The product as an operator: what torch's own checks say of it, and that a compiled function holds it."""

import pytest
import torch

from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import TYPES
from qkv.kernels.ops import packed_linear
from tests.kernels.test_dequantize import random_blocks


@pytest.mark.parametrize("kind", [*TYPES, "Q5_0"])
def test_shapes_and_numbers(kind: str) -> None:
    raw = torch.from_numpy(random_blocks(kind, 6, 4, 1)).view(6, -1)
    weight = dequantize(raw.view(-1), kind, (6, 4 * (256 if kind.endswith("K") else 32)))
    x = torch.randn(2, 3, weight.shape[1])
    torch.library.opcheck(packed_linear, (x, raw, kind), test_utils=("test_schema", "test_faketensor"))
    y = packed_linear(x, raw, kind)
    assert y.shape == (2, 3, 6)
    assert (y - x @ weight.T).norm() / y.norm() < 0.02
