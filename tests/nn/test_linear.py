"""Fresh weights."""

import pytest
import torch

from qkv.nn.linear import Embedding, Linear, fresh, rounded_once


def test_normal_with_deviation_a_fiftieth() -> None:
    for weight in (fresh(300, 300), Linear(300, 300).weight, Embedding(300, 300).weight):
        assert weight.requires_grad
        assert weight.mean().abs().item() < 5e-4
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert fresh(300, 300, std=1.0).std().item() == pytest.approx(1, rel=0.02)
    assert not Linear(3, 4).bias.any()
    assert Linear(3, 4, bias=False).bias is None


def test_nothing_is_drawn_on_the_meta_device() -> None:
    before = torch.get_rng_state()
    with torch.device("meta"):
        made = (fresh(2**20, 2**20), Linear(2**20, 2**20).weight, Embedding(2**20, 2**20).weight)
    assert all(weight.is_meta for weight in made)
    assert torch.equal(before, torch.get_rng_state())


def test_rounded_once_is_what_autocast_rounds_to() -> None:
    x, linear = torch.randn(3, 4), Linear(4, 2)
    assert rounded_once(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert rounded_once(x).dtype == torch.bfloat16
        assert torch.equal(linear(rounded_once(x)), linear(x))
        assert rounded_once(x.double()).dtype == torch.float64
