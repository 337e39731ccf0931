"""The average of weights: its arithmetic, its place in the model, and its way through a checkpoint."""

import contextlib

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from qkv.errors import ConfigError, CorruptFile
from qkv.train.ema import Ema
from tests.tiny import tiny


def drift(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw))


def test_the_average_is_the_formula() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.5)
    expected = model.weight.detach().double()
    for n in range(1, 20):
        drift(model, n)
        ema.update()
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * model.weight.detach().double()
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_as_torch_has_it_once_the_decay_is_reached() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.15)  # less than (1 + 1) / (10 + 1) from the first update on
    theirs = torch.optim.swa_utils.get_ema_multi_avg_fn(0.15)
    averages = [p.detach().clone() for p in model.parameters()]
    for n in range(5):
        drift(model, n)
        ema.update()
        theirs(averages, list(model.parameters()), n)
    torch.testing.assert_close(list(ema.average.values()), averages)


def test_swapped_and_back_bit_for_bit() -> None:
    model = tiny()
    ids = torch.arange(6)[None]
    ema = Ema(model, 0.9)
    drift(model, 0)
    ema.update()
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {name: a.clone() for name, a in ema.average.items()}
    places = [p.data_ptr() for p in model.parameters()]
    before = model(ids)
    with contextlib.suppress(KeyError), ema.swapped():
        assert all(torch.equal(p, average[name]) for name, p in model.named_parameters())
        assert not torch.equal(model(ids), before)
        raise KeyError  # an evaluation that fails
    assert all(torch.equal(p, own[name]) for name, p in model.named_parameters())
    assert all(torch.equal(a, average[name]) for name, a in ema.average.items())
    assert torch.equal(model(ids), before)
    assert [p.data_ptr() for p in model.parameters()] == places


def test_a_resumed_average_is_the_same_bit_for_bit() -> None:
    def run(model: nn.Module, ema: Ema, steps: range) -> None:
        for n in steps:
            drift(model, n)
            ema.update()

    torch.manual_seed(0)
    whole = nn.Linear(5, 3)
    part = nn.Linear(5, 3)
    part.load_state_dict(whole.state_dict())
    one, half = Ema(whole, 0.9), Ema(part, 0.9)
    run(whole, one, range(6))
    run(part, half, range(3))
    saved, again = load(save(half.tensors())), nn.Linear(5, 3)
    again.load_state_dict(part.state_dict())
    resumed = Ema(again, 0.9)
    places = {name: t.data_ptr() for name, t in resumed.tensors().items()}
    resumed.restore(saved)
    assert {name: t.data_ptr() for name, t in resumed.tensors().items()} == places
    run(again, resumed, range(3, 6))
    assert all(torch.equal(t, one.tensors()[name]) for name, t in resumed.tensors().items())


def test_only_what_is_trained_and_tied_ones_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    model["b"].bias.requires_grad_(False)
    assert Ema(model, 0.9).tensors().keys() == {"a.weight", "a.bias", "/updates"}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"weight is torch\.bfloat16"):
        Ema(nn.Linear(2, 2).bfloat16(), 0.9)
    ema = Ema(nn.Linear(2, 2), 0.9)
    saved = {name: t.clone() for name, t in ema.tensors().items()}
    with pytest.raises(CorruptFile, match="bias is not in the checkpoint"):
        ema.restore({name: t for name, t in saved.items() if name != "bias"})
    with pytest.raises(CorruptFile, match="odd is in the checkpoint alone"):
        ema.restore({**saved, "odd": torch.zeros(1)})
    with pytest.raises(ConfigError, match="bias has another shape"):
        ema.restore({**saved, "bias": torch.zeros(3)})
