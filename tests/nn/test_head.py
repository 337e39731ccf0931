"""Logits."""

import pytest
import torch

from qkv import spec
from qkv.nn import head  # noqa: F401  (importing registers its part)
from qkv.nn.parts import build

X, TABLE = torch.randn(3, 8), torch.randn(5, 8)


def test_tied_to_the_embedding() -> None:
    part = build(spec.LMHead(), 5, 8)
    assert not list(part.parameters())
    torch.testing.assert_close(part(X, TABLE), X @ TABLE.T)


@pytest.mark.parametrize("tied", [True, False])
def test_matrix_and_bias_of_its_own(tied: bool) -> None:
    part = build(spec.LMHead(tied=tied, bias=True), 5, 8)
    torch.nn.init.normal_(part.bias)
    torch.testing.assert_close(part(X, TABLE), X @ (TABLE if tied else part.weight).T + part.bias)


def test_soft_cap() -> None:
    capped = build(spec.LMHead(softcap=2.0), 5, 8)(X * 100, TABLE)
    torch.testing.assert_close(capped, 2 * torch.tanh(X * 100 @ TABLE.T / 2))
    assert capped.abs().max() <= 2
