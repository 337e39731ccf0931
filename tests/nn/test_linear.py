"""Fresh weights."""

import pytest
import torch
from torch.nn import functional as F

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


def test_products_that_are_learned_in_few_bits_have_whole_rows(monkeypatch):
    """The same numbers, and their gradients."""
    torch.manual_seed(0)
    layer, seen = Linear(8, 6), []
    monkeypatch.setattr(F, "linear", lambda x, *rest, own=F.linear: seen.append(len(x)) or own(x, *rest))
    x = torch.randn(70, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert y.shape == (70, 6)
    assert seen == [128]
    found = [x.grad, layer.weight.grad, layer.bias.grad]
    x.grad, layer.weight.grad, layer.bias.grad = None, None, None
    plain = layer(x)
    plain.square().sum().backward()
    assert seen == [128, 70]
    for ours, exact in zip([y, *found], [plain, x.grad, layer.weight.grad, layer.bias.grad], strict=True):
        assert (ours.float() - exact).norm() < 0.02 * exact.norm()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert seen[-1] == 70
