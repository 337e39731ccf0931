"""Two ranks learn what one does; what one rank suffers all know; a dead one ends the others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import qkv
from qkv.errors import ConfigError
from qkv.families.t5 import FAMILY as T5
from qkv.nn.stack import Transformer
from qkv.train import parallel
from qkv.train.learner import checkpoint_activations
from qkv.train.parallel import ALONE, World
from tests.tiny import VOCAB, tiny
from tests.train import ranks

HERE = "tests.train.test_parallel"


class Step(nn.Module):
    """A model and its loss, as the loop wraps them."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.model.encoder is not None:
            return self.model(ids, ids).square().sum()
        stream, batch = self.model.batch(ids)
        logits = self.model.logits(self.model.states(stream, batch))
        return nn.functional.cross_entropy(logits, stream, reduction="sum")


def models() -> dict[str, Transformer]:
    """Plain; activations computed twice; one block in all turns; a frozen block; T5, with one table of distances in all
    blocks of a stack and cross-attention, which reads the encoder's states before its block runs."""
    torch.manual_seed(0)
    frozen = tiny(layers=2)
    frozen.decoder.blocks[1].requires_grad_(False)
    recomputed = tiny()
    checkpoint_activations(recomputed)
    return {
        "plain": tiny(),
        "recomputed": recomputed,
        "shared": tiny(layers=3, shared=True),
        "frozen": frozen,
        "t5": Transformer(T5.spec(T5.tiny)).eval(),
    }


def feeds(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB, (2, 4 + i), generator=draw) for i in range(count)]


def learn(step: Step, world: World, kind: str, steps: int = 2) -> list[float]:
    """Steps of 4 micro-batches, shared by the ranks: the norms of their gradients."""
    wrapped = parallel.wrap(step, world, kind)
    weights = [weight for weight in step.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    own = feeds(4)[world.rank :: world.size]
    total = parallel.sum_over(world, torch.tensor(float(sum(feed.numel() for feed in own))))
    norms = []
    for _ in range(steps):
        optimizer.zero_grad()
        for i, feed in enumerate(own):
            with parallel.accumulating(wrapped, last=i == len(own) - 1):
                (wrapped(feed) / total).backward()
        norms.append(float(parallel.clip_norm(weights, 0.5, world)))
        optimizer.step()
    return norms


def learning(out: str) -> None:
    """Rank 0 writes what all have learned, for each kind and model."""
    world = World.from_environment("cpu", timeout=60)
    for kind in ("ddp", "fsdp") if world.size > 1 else ("ddp",):
        for name, model in models().items():
            if world.rank:
                nn.init.zeros_(model.table)  # rank 0's weights count
            step = Step(model)
            norms = learn(step, world, kind)
            whole = parallel.gathered(dict(step.model.named_parameters()))
            if world.first:
                whole["norms"] = torch.tensor(norms)
                keep(Path(out) / f"{kind}-{name}-{world.size}", whole)
    world.close()


def keep(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def telling(out: str) -> None:
    """What ranks tell each other; asserted on each."""
    world = World.from_environment("cpu", timeout=60)
    assert parallel.gather(world, {"rank": world.rank, "é": "x" * world.rank * 50}) == [
        {"rank": rank, "é": "x" * rank * 50} for rank in range(world.size)
    ]
    assert parallel.any_rank(world, world.rank == 1)
    assert not parallel.any_rank(world, False)
    assert float(parallel.sum_over(world, torch.tensor(world.rank + 1.0))) == 3.0
    assert parallel.together(world, lambda: world.rank * 2) == [0, 2]
    error, message = (parallel.Elsewhere, "rank 1 failed: IndexError") if world.first else (IndexError, "range")
    with pytest.raises(error, match=message):
        parallel.together(world, lambda: [1][world.rank])
    parallel.barrier(world)
    assert world.mesh.mesh_dim_names == ("pipeline", "data", "context", "tensor")
    assert world.mesh["data"].size() == world.size
    world.close()


def sparing(out: str) -> None:
    """Gradients cross once a step, after the last micro-batch, and are a rank's own before."""
    world = World.from_environment("cpu", timeout=60)
    for kind in ("ddp", "fsdp"):
        step = Step(tiny())
        wrapped = parallel.wrap(step, world, kind)
        for last in (False, False, True):
            with parallel.accumulating(wrapped, last=last):
                wrapped(feeds(2)[world.rank]).backward()
            weight = next(step.parameters())
            if kind == "fsdp":
                assert (weight.grad is not None) == last
            else:
                one, two = parallel.gather(world, float(weight.grad.square().sum()))
                assert (one == two) == last
    world.close()


def dying(out: str) -> None:
    """Rank 1 is killed in its third step."""
    _until(signal.SIGKILL)


def hanging(out: str) -> None:
    """Rank 1 stops and stays."""
    _until(signal.SIGSTOP)


def _until(end: signal.Signals) -> None:
    world = World.from_environment("cpu", timeout=3)
    for i in range(1000):
        if (world.rank, i) == (1, 3):
            os.kill(os.getpid(), end)
        parallel.any_rank(world, False)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, list[list[ranks.Ended]]]:
    """All that needs several processes, in one go."""
    out = tmp_path_factory.mktemp("ranks")
    jobs = [("learning", 1), ("learning", 2), ("telling", 2), ("sparing", 2), ("dying", 2), ("hanging", 2)]
    return out, ranks.run(HERE, jobs, out, well=False)


@pytest.mark.parametrize("model", ["plain", "recomputed", "shared", "frozen", "t5"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_does(ended, kind: str, model: str) -> None:
    from safetensors.torch import load_file

    one, two = load_file(ended[0] / f"ddp-{model}-1"), load_file(ended[0] / f"{kind}-{model}-2")
    assert one.keys() == two.keys()
    fresh = dict(models()[model].named_parameters())
    assert any(not torch.equal(one[name], fresh[name]) for name in fresh)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_ranks_tell_each_other(ended) -> None:
    assert [rank.status for rank in ended[1][2]] == [0, 0]


def test_gradients_cross_once_a_step(ended) -> None:
    assert [rank.status for rank in ended[1][3]] == [0, 0]


def test_a_dead_rank_ends_the_others(ended) -> None:
    (left, dead), (waiting, stopped) = ended[1][4:]
    assert (dead.status, left.status) == (-signal.SIGKILL, 1)
    assert left.seconds - dead.seconds < 3 + 10
    assert (stopped.status, waiting.status) == (-signal.SIGSTOP, 1)
    assert waiting.seconds - stopped.seconds < 3 + 10


def test_torchrun_ends_with_its_rank(tmp_path) -> None:
    """Started by its own launcher, and one rank killed."""
    script = tmp_path / "killed.py"
    script.write_text("from tests.train.test_parallel import dying; dying('')")
    root = str(Path(qkv.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([sys.executable, *launcher], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL)" in done.stderr


def test_alone_needs_nothing(monkeypatch) -> None:
    for name in parallel.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    world = World.from_environment("cpu")
    module = Step(tiny())
    assert world == ALONE
    assert parallel.wrap(module, world, "fsdp") is module
    with parallel.accumulating(module, last=False):
        module(feeds(1)[0]).backward()
    assert parallel.gather(world, {"a": (1, 2)}) == [{"a": (1, 2)}]
    parallel.barrier(world)
    world.close()
    assert not torch.distributed.is_initialized()


def test_torchrun_with_one_process_is_alone(monkeypatch) -> None:
    for name, value in zip(parallel.LAUNCHED, ("0", "0", "1", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert World.from_environment("cpu") == ALONE


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: start the ranks by torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, got 'two'"),
        (
            dict(zip(parallel.LAUNCHED, ("2", "0", "2", "localhost", "1"), strict=True)),
            "RANK is 2 in a WORLD_SIZE of 2",
        ),
    ],
)
def test_variables_that_do_not_fit(monkeypatch, told: dict[str, str], message: str) -> None:
    for name in parallel.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        World.from_environment("cpu")


@pytest.mark.parametrize("most", [1e-3, 1e3, None])
def test_the_norm_is_torchs(most: float | None) -> None:
    mine, theirs = Step(tiny()), Step(tiny())
    theirs.load_state_dict(mine.state_dict())
    for step in (mine, theirs):
        step(feeds(1)[0]).backward()
    norm = parallel.clip_norm(mine.parameters(), most)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(theirs.parameters(), most or float("inf")))
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_no_gradient_has_no_norm() -> None:
    assert float(parallel.clip_norm(tiny().parameters(), 1.0)) == 0
