"""The hunt for the first number that is not finite."""

import pytest
import torch
from torch import nn

from qkv.train.faults import first_bad, named


class Odd(nn.Module):
    """Finite ahead, infinite back: the square root at zero."""

    def forward(self, x):
        return x.sqrt()


def model(*parts):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), *parts)


def test_the_first_module_is_named():
    m = model(nn.Identity(), nn.Linear(3, 1))
    with torch.no_grad():
        m[2].bias.fill_(float("nan"))
    found = first_bad(m, lambda: m(torch.ones(2, 3)).sum())
    assert found == (True, "the first to give a number that is not finite is 2, whose bias is not finite itself")
    assert not any(one._forward_hooks for one in m.modules())


def test_a_module_whose_own_weights_are_well():
    m = model(nn.Linear(3, 3))
    with torch.no_grad():
        m[0].weight.fill_(1e38)
    ahead, text = first_bad(m, lambda: m(torch.full((2, 3), 1e3)).sum())
    assert ahead
    assert text.endswith("is 0")


def test_a_gradient():
    m = model(Odd())
    with torch.no_grad():
        m[0].weight.zero_()
        m[0].bias.zero_()
    found = first_bad(m, lambda: m(torch.ones(2, 3)).sum())
    assert found == (False, "the loss is finite, and the gradient of 0.weight is not")


def test_the_loss_alone_and_nothing_at_all():
    m = model()
    assert "the loss of them is not" in first_bad(m, lambda: m(torch.ones(1, 3)).sum() / 0)[1]
    m.zero_grad()
    assert first_bad(m, lambda: m(torch.ones(1, 3)).sum()) is None


@pytest.mark.parametrize(("count", "end"), [(2, "f:0, f:1"), (10, "f:7 and 2 more")])
def test_samples_are_named(count, end):
    assert named([f"f:{i}" for i in range(count)]).endswith(end)
