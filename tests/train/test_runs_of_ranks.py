"""Runs of two processes: what one process does with twice as many batches, sharded or not; checkpoints that go on at
the same and at another number of processes; and an end for all where there is one for any."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import qkv
from qkv.errors import ConfigError, InputError
from qkv.train import checkpoint, log, recipe_file
from qkv.train import run as runs
from qkv.train.checkpoint import CHECKPOINTS
from qkv.train.faults import NotFinite
from qkv.train.run import train
from tests.train import ranks, tiny
from tests.train.same import assert_same, held, losses

SHAPE = {"batch": {"sequences": 20}, "data": {"valid": "valid.jsonl"}, "eval": {"every": 3, "samples": 0}}


def said(folder, **changes):
    tables = {name: {**SHAPE.get(name, {}), **changes.get(name, {})} for name in {*SHAPE, *changes}}
    return tiny.recipe(Path(folder), **tables)


def quietly():
    """In a rank: nothing that takes long and is not looked at."""
    runs.gemm_peak = lambda *_: 1e9
    runs.export.curve.png = lambda *_: None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    tiny.write(tmp_path)
    return tmp_path


# --- the work of a rank ---------------------------------------------------------------------------------------------


def alone(folder):
    """One process, with the two ranks' batches one after another."""
    quietly()
    train(said(folder, batch={"accumulate": 2}), Path(folder) / "alone")


def _both(folder, kind, **changes):
    quietly()
    recipe = said(folder, train={"parallel": kind, "ema": 0.9}, save={"every": 3, "keep": 9}, **changes)
    out = Path(folder) / kind
    if not out.exists():
        assert train(recipe, out).step == 8
        return
    train(recipe, out, resume=3)  # again, with what comes after it thrown away


def ddp(folder):
    _both(folder, "ddp")


def fsdp(folder):
    _both(folder, "fsdp")


def elsewhere(folder):
    """The two ranks' checkpoints, by one process: told, and taken where that is allowed."""
    quietly()
    for kind in ("ddp", "fsdp"):
        recipe = said(folder, train={"parallel": kind, "ema": 0.9}, save={"every": 3, "keep": 9})
        with pytest.raises(InputError, match="there were 2 processes and are 1"):
            train(recipe, Path(folder) / kind, resume=3)
        assert train(recipe, Path(folder) / kind, resume=3, allow_changed=True).step == 8


def adafactor(folder):
    quietly()
    with pytest.raises(ConfigError, match="adafactor doesn't work on sharded"):
        train(said(folder, train={"parallel": "fsdp", "optimizer": "adafactor"}), Path(folder) / "adafactor")


def minutes(folder):
    """The ranks' clocks differ by far, and they end at the same step with the same rates."""
    quietly()
    rank, clock = int(os.environ["RANK"]), time.perf_counter
    runs.Loop._seconds.__globals__["time"] = type(
        "Clock", (), {"perf_counter": lambda: clock() * (1 + 9 * rank), "monotonic": lambda: clock() * (1 + 9 * rank)}
    )
    recipe = said(folder, train={"steps": None, "minutes": 0.01}, save={"minutes": 0.003}, eval={"every": None})
    done = train(recipe, Path(folder) / "minutes")
    (Path(folder) / f"steps-{rank}").write_text(str(done.step))


def not_finite_ddp(folder):
    _not_finite(folder, "ddp")


def not_finite_fsdp(folder):
    _not_finite(folder, "fsdp")


def _not_finite(folder, kind):
    """On one rank only: both say so, and none waits."""
    quietly()
    from qkv.train.causal import Causal

    own, rank, calls = Causal.loss, os.environ["RANK"], [0]

    def loss(self, model, feed):
        calls[0] += 1
        return own(self, model, feed) * (float("nan") if rank == "1" and calls[0] > 2 else 1)

    Causal.loss = loss
    recipe = said(folder, train={"parallel": kind}, eval={"every": None}, save={"every": 1})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"valid": ()})})
    out = Path(folder) / f"nan-{kind}"
    with pytest.raises(
        NotFinite,
        match=r"step 3: the loss is nan; batch 1 of 1 of rank 1 \(.*train.jsonl:\d.*the loss of them is not",
    ):
        train(recipe, out)
    assert checkpoint.newest(out / CHECKPOINTS, print).step == 2


def overflow(folder):
    """float16 gradients overflow in the rows of one rank: no rank takes that step."""
    quietly()
    from qkv.train import parallel

    own, calls = parallel.clip_norm, [0]

    def clip(parameters, most, world):
        parameters = list(parameters)
        calls[0] += 1
        return own(parameters, most, world)

    parallel.clip_norm = clip
    scaled = torch.amp.GradScaler.unscale_

    def unscale(self, optimizer):
        if calls[0] == 1 and os.environ["RANK"] == "1":
            p = optimizer.param_groups[0]["params"][0]
            getattr(p.grad, "_local_tensor", p.grad).fill_(float("inf"))
        scaled(self, optimizer)

    torch.amp.GradScaler.unscale_ = unscale
    recipe = said(folder, train={"parallel": "fsdp", "dtype": "float16", "steps": 4}, save={"every": 1, "keep": 9})
    out = Path(folder) / "overflow"
    train(recipe, out)


def killed(folder):
    """Rank 1 dies in the third step."""
    quietly()
    from qkv.train.causal import Causal

    own, calls = Causal.loss, [0]

    def loss(self, model, feed):
        calls[0] += 1
        if calls[0] == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, model, feed)

    Causal.loss = loss
    train(said(folder, train={"parallel": "fsdp"}, save={"every": 1}), Path(folder) / "killed")


# --- tests ----------------------------------------------------------------------------------------------------------


def test_two_processes_do_what_one_does_with_twice_the_batches(folder):
    jobs = [("alone", 1), ("ddp", 2), ("fsdp", 2)]
    ranks.run(__name__, jobs, folder)
    one = losses(folder / "alone")
    for kind in ("ddp", "fsdp"):
        both = losses(folder / kind)
        assert both.keys() == one.keys()
        for step, wanted in one.items():
            assert both[step] == pytest.approx(wanted, rel=1e-4), (kind, step)
        values = [line["values"]["loss"] for line in log.read(folder / kind).evaluations]
        assert len(values) == 3
        assert values[-1] < values[0]
        assert isinstance(qkv.load(folder / kind).generate("the cat", max_tokens=2).text, str)
    assert sorted(path.name for path in folder.glob("fsdp/checkpoints/step-00000008/weights*")) == [
        "weights-00001-of-00002.safetensors",
        "weights-00002-of-00002.safetensors",
    ]
    before = {kind: (held(folder / kind, 8), losses(folder / kind)) for kind in ("ddp", "fsdp")}
    ranks.run(__name__, [("ddp", 2), ("fsdp", 2), ("elsewhere", 1)], folder)
    for kind in ("ddp", "fsdp"):
        lost = sorted((folder / kind / CHECKPOINTS).glob("aside-step-00000008*"))
        assert len(lost) == 2, "of the first course, and of the second"
        assert_same(before[kind][0], _aside(folder / kind, lost[1].name))


def _aside(out, name):
    found = checkpoint.Checkpoint(
        out / CHECKPOINTS / name, 8, json.loads((out / CHECKPOINTS / name / "state.json").read_text()),
        tuple(path.name for path in (out / CHECKPOINTS / name).glob("*.safetensors")),
    )  # fmt: skip
    tensors = {f"{stem}/{key}": t.clone() for stem in found.stems for key, t in found.read(stem).items()}
    return tensors, {**found.state, "loop": {**found.state["loop"], "seconds": 0}}


def test_what_goes_wrong_on_one_rank_ends_all(folder):
    ranks.run(__name__, [("adafactor", 2), ("not_finite_ddp", 2), ("not_finite_fsdp", 2)], folder)


def test_a_killed_rank_ends_the_others(folder):
    first, second = ranks.run(__name__, [("killed", 2)], folder, well=False)[0]
    assert (first.status, second.status) == (1, -signal.SIGKILL)
    assert first.seconds < 30
    found = checkpoint.newest(folder / "killed" / CHECKPOINTS, print)
    assert found is not None
    assert found.step == 2


def test_a_clock_of_its_own_on_each_rank(folder):
    ranks.run(__name__, [("minutes", 2)], folder)
    assert (folder / "steps-0").read_text() == (folder / "steps-1").read_text()


def test_float16_overflow_on_one_rank(folder):
    ranks.run(__name__, [("overflow", 2)], folder)
    first, second = (checkpoint.at(folder / "overflow" / CHECKPOINTS, step) for step in (1, 2))
    assert [one.state["skipped"] for one in (first, second)] == [0, 1]
    weights = first.read("weights")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in second.read("weights").items())


# --- torchrun -------------------------------------------------------------------------------------------------------


def launched(folder, path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "qkv", "train", str(path), "--out", str(folder / "run")]
    home = Path(qkv.__file__).parents[1]
    return subprocess.Popen(command, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def begun(folder, process):
    end = time.monotonic() + 90
    while not (folder / "run" / log.NAME).exists() or not log.read(folder / "run").steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_torchrun_saves_on_sigterm(folder):
    recipe = said(folder, train={"steps": 100_000, "schedule": {"kind": "constant"}}, eval={"every": None})
    path = folder / "recipe.toml"
    path.write_text(recipe_file.resolved(recipe))
    process = launched(folder, path)
    begun(folder, process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    found = checkpoint.newest(folder / "run" / CHECKPOINTS, print)
    assert found is not None, text
    assert found.step == log.read(folder / "run").steps[-1]["step"]
    assert "with everything saved" in text
