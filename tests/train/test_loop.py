"""The loop: what is due when, whose clock counts, and what it says of a number that is not finite."""

import math

import pytest
import torch

from qkv.errors import CorruptFile
from qkv.train import checkpoint, log
from qkv.train import run as runs
from qkv.train.causal import Causal
from qkv.train.checkpoint import CHECKPOINTS
from qkv.train.faults import NotFinite
from qkv.train.loop import State
from qkv.train.run import train
from tests.train.same import assert_same, held
from tests.train.tiny import recipe, write

OWN = Causal.loss


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("qkv.train.prepare.cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(runs, "gemm_peak", lambda *_: 1e9)
    monkeypatch.setattr(runs.export.curve, "png", lambda *_: None)
    write(tmp_path)
    return tmp_path


class Backwards(torch.autograd.Function):
    """The same number, with this gradient."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.value, None


def breaking(monkeypatch, call, how):
    """From this call of the loss on it is broken."""
    own, calls = Causal.loss, [0]

    def loss(self, model, feed):
        calls[0] += 1
        found = own(self, model, feed)
        return how(found) if calls[0] >= call else found

    monkeypatch.setattr(Causal, "loss", loss)


WAYS = {
    "loss": (lambda x: x * math.nan, "the loss is nan", "the loss of them is not"),
    "infinite": (lambda x: x + math.inf, "the loss is inf", "the loss of them is not"),
    "gradient": (
        lambda x: Backwards.apply(x, math.nan),
        "norm of its gradient is nan",
        r"the gradient of model\.\S+ is",
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_number_that_is_not_finite_in_the_middle_of_an_accumulation(folder, monkeypatch, way, dtype):
    how, what, where = WAYS[way]
    breaking(monkeypatch, 6, how)
    said = recipe(folder, train={"dtype": dtype}, batch={"accumulate": 2}, save={"every": 1, "keep": 9})
    with pytest.raises(NotFinite, match=rf"^step 3: .*{what}; batch [12] of 2 \(\S*train\.jsonl:\d+, .*{where}"):
        train(said, folder / "run")
    assert checkpoint.newest(folder / "run" / CHECKPOINTS, print).step == 2
    monkeypatch.setattr(Causal, "loss", OWN)
    train(said, folder / "run")
    train(said, folder / "whole")
    assert_same(held(folder / "run", 8), held(folder / "whole", 8))


def test_float16_steps_that_overflow_are_skipped_counted_and_told(folder, monkeypatch, capfd):
    own, calls = Causal.loss, [0]

    def loss(self, model, feed):
        calls[0] += 1
        return Backwards.apply(own(self, model, feed), math.inf if calls[0] in (3, 4) else 1.0)

    monkeypatch.setattr(Causal, "loss", loss)
    said = recipe(folder, train={"dtype": "float16"}, save={"every": 1, "keep": 9})
    train(said, folder / "run")
    states = [checkpoint.at(folder / "run" / CHECKPOINTS, step) for step in range(2, 6)]
    assert [one.state["skipped"] for one in states] == [0, 1, 2, 2]
    scales = [one.state["scaler"]["scale"] for one in states]
    assert scales == [scales[0], scales[0] / 2, scales[0] / 4, scales[0] / 4]
    weights = [one.read("weights") for one in states]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[2][name])
    assert not all(torch.equal(tensor, weights[3][name]) for name, tensor in weights[0].items())
    assert "2 steps were not taken" in capfd.readouterr().err
    assert [isinstance(line["grad_norm"], str) for line in log.read(folder / "run").steps][1:5] == [
        False,
        True,
        True,
        False,
    ]
    wanted = held(folder / "run", 8)
    train(said, folder / "run", resume=5)
    assert_same(held(folder / "run", 8), wanted)


def test_evaluations_and_checkpoints_come_when_they_are_due(folder):
    said = recipe(
        folder,
        data={"valid": "valid.jsonl"},
        train={"steps": 7},
        eval={"every": 3, "samples": 0},
        save={"every": 2, "keep": 9},
    )
    train(said, folder / "run")
    assert [line["step"] for line in log.read(folder / "run").evaluations] == [3, 6, 7]
    assert sorted(int(one.name[5:]) for one in (folder / "run" / CHECKPOINTS).iterdir()) == [2, 4, 6, 7]


def test_an_evaluation_that_was_due_comes_after_the_resume(folder, monkeypatch):
    said = recipe(folder, data={"valid": "valid.jsonl"}, eval={"every": 3, "samples": 0}, save={"every": 3, "keep": 9})
    train(said, folder / "run")
    state = checkpoint.at(folder / "run" / CHECKPOINTS, 3).state["loop"]
    assert (state["evaluated"], state["waited"]) == (3, 0)
    monkeypatch.setattr(runs.State, "from_json", lambda data: State(**{**data, "evaluated": 0}))
    train(said, folder / "run", resume=3)
    assert [line["step"] for line in log.read(folder / "run").evaluations] == [3, 6, 8]


def test_by_minutes_of_training(folder):
    said = recipe(folder, train={"steps": None, "minutes": 0.004}, save={"minutes": 0.001, "keep": 99})
    done = train(said, folder / "run")
    steps = log.read(folder / "run").steps
    assert steps[-1]["step"] == done.step > 1
    assert sum(line["seconds"] for line in steps[:-1]) < 0.24 <= sum(line["seconds"] for line in steps) + 1e-3
    assert steps[0]["lr"] > steps[-1]["lr"]
    assert len(list((folder / "run" / CHECKPOINTS).iterdir())) > 1


def test_a_state_of_another_version(folder):
    state = State(step=3, best=0.5)
    assert State.from_json(state.to_json()) == state
    with pytest.raises(CorruptFile, match="another version of qkv"):
        State.from_json({"step": 3})


def test_what_the_weights_are_worth():
    state = State(step=1)
    state.judge("loss", 2.0, min)
    state.step = 2
    state.judge("loss", 2.0, min)
    assert (state.best, state.best_step, state.waited, state.evaluated) == (2.0, 1, 1, 2)
    for patience, ended in ((1, True), (2, False), (None, False)):
        state.wait(patience)
        assert state.stopped_early is ended
    state.step = 3
    state.judge("loss", 1.0, min)
    assert (state.best_step, state.waited, state.metric) == (3, 0, "loss")
    state.forget_best()
    assert state == State(step=3)
