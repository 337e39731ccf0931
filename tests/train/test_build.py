"""From what is prepared to what steps, and to a checkpoint and back."""

import pytest
import torch

from qkv.errors import ConfigError, InputError
from qkv.train import checkpoint
from qkv.train.build import build, facts
from qkv.train.checkpoint import CHECKPOINTS
from qkv.train.loop import State
from qkv.train.parallel import ALONE
from qkv.train.prepare import prepare
from tests.train.tiny import recipe


def built(folder, **changes):
    said = recipe(folder, **changes)
    return build(said, prepare(said, folder, ALONE), ALONE)


def stepped(one, steps):
    feeds = one.loader.steps()
    for step in range(steps):
        one.stepper.gradients(next(feeds)[0], step)
        one.stepper.move(0.5)
    feeds.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_that_shapes_the_next_step_comes_back(folder, dtype):
    said = {"train": {"ema": 0.5, "dtype": dtype}}
    one, other = built(folder, **said), built(folder, **said)
    stepped(one, 2)
    one.stepper.skipped = 3
    one.save(folder, State(step=2, batch=2, best=0.5), keep=1, protect=[])
    state = other.take(checkpoint.at(folder, 2), allow_changed=False)
    assert state == State(step=2, batch=2, best=0.5)
    assert other.stepper.skipped == 3
    assert other.stepper.scaler.state_dict() == one.stepper.scaler.state_dict()
    for a, b in zip(one.stepper.optimizers, other.stepper.optimizers, strict=True):
        for p, q in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], strict=True):
            assert {k: v.dtype for k, v in a.state[p].items()} == {k: v.dtype for k, v in b.state[q].items()}
            assert all(torch.equal(v, b.state[q][k]) for k, v in a.state[p].items())
    assert all(torch.equal(v, other.weights()[k]) for k, v in one.weights().items())
    assert all(torch.equal(v, other.stepper.ema.tensors()[k]) for k, v in one.stepper.ema.tensors().items())
    size = sum(file.stat().st_size for file in (folder / "step-00000002").glob("*.safetensors"))
    assert size == pytest.approx(one.bytes(), rel=0.35)


def test_other_data_or_another_number_of_processes(folder):
    one = built(folder)
    one.save(folder / CHECKPOINTS, State(step=1), keep=1, protect=[])
    (folder / "train.jsonl").write_text('{"text": "the cat sat"}\n' * 9)
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog"', '"dogs"'))
    other = built(folder)
    with pytest.raises(InputError, match=r"train\.jsonl has other content; tokenizer has other content.*allow-changed"):
        other.take(checkpoint.at(folder / CHECKPOINTS, 1), allow_changed=False)
    assert other.take(checkpoint.at(folder / CHECKPOINTS, 1), allow_changed=True).step == 1


def test_float16_after_float32_begins_with_a_fresh_scale(folder):
    built(folder).save(folder, State(step=1), keep=1, protect=[])
    other = built(folder, train={"dtype": "float16"})
    before = other.stepper.scaler.state_dict()
    other.take(checkpoint.at(folder, 1), allow_changed=True)
    assert other.stepper.scaler.state_dict() == before


def test_how_long_and_what_the_log_says_first(folder):
    one = built(folder, train={"steps": None, "epochs": 2.5})
    assert one.total == 25
    assert built(folder, train={"steps": None, "minutes": 1}).total is None
    said = facts(one, recipe(folder))
    assert said["parameters"] == said["trained"] == sum(p.numel() for p in one.model.parameters())
    assert (said["model"], said["processes"]) == ("gpt2", 1)
    frozen = recipe(folder, model={"freeze": ["decoder.embed.*"]})
    assert facts(built(folder, model={"freeze": ["decoder.embed.*"]}), frozen)["trained"] < said["parameters"]


def test_what_an_optimizer_does_not_have(folder):
    with pytest.raises(ConfigError, match="muon_lr does nothing"):
        built(folder, train={"muon_lr": 0.1})


def test_a_schedule_is_for_as_many_steps_as_the_epochs_have(folder):
    said = {"train": {"steps": None, "epochs": 1, "schedule": {"warmup": 10}}}
    with pytest.raises(ConfigError, match="warmup is 10 of 10 steps"):
        built(folder, **said)


def test_why_weights_cannot_be_had(folder):
    one = built(folder)
    one.save(folder / "c", State(step=1), keep=1, protect=[])
    assert one.why_not(folder / "c", 1) is None
    assert "no checkpoint of step 2" in one.why_not(folder / "c", 2)
    (folder / "c" / "step-00000001" / "weights.safetensors").write_bytes(b"")
    assert "weights.safetensors" in one.why_not(folder / "c", 1)
