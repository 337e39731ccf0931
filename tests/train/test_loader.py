"""The same feeds with 0 and 2 workers and from any position; a killed worker is an error; a signal ends the wait."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from multiprocessing import active_children
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from qkv.errors import InputError, QkvError
from qkv.train.loader import Loader, Position
from qkv.train.objective import Feed, Objective
from qkv.train.order import Order
from qkv.train.recipe import BatchOf
from qkv.train.records import Bad, Placed
from qkv.train.shards import Shards, build

BEGIN = Position()


class Noisy(Objective):
    """Draws for each token, and uses torch while it makes a batch."""

    fields = ("ids",)
    packs = True

    def __init__(self) -> None:
        super().__init__(None, cast(Any, None), cast(Any, None), None)
        self.on = lambda ids: None

    def encode(self, record):
        return [{"ids": np.array(record["ids"], np.int32), "kinds": np.array(record["ids"], np.int32) % 3}]

    def collate(self, samples, draw):
        self.on(samples)
        ids = [torch.from_numpy(sample["ids"]) for sample in samples]
        large = torch.ones(400, 400)  # enough for torch to think of threads
        noise = torch.from_numpy(draw.random(sum(map(len, ids)), np.float32)) * (large @ large)[0, 0]
        labels = {"noise": noise, "kinds": [sample["kinds"] for sample in samples], "n": len(samples)}
        return Feed(ids, labels, targets=len(noise), tokens=len(noise))

    def loss(self, model, feed):
        raise NotImplementedError


def shards_of(folder: Path, sizes) -> Shards:
    draw = np.random.default_rng(1)
    placed = [Placed({"ids": draw.integers(0, 99, n)}, f"a.txt:{i + 1}") for i, n in enumerate(sizes)]
    objective = Noisy()
    return build(placed, objective.encode, folder / "shards", {}, size=objective.size, bad=Bad())


@pytest.fixture
def shards(tmp_path):
    return shards_of(tmp_path, np.random.default_rng(0).integers(1, 20, 50))


BATCHES = {
    "tokens": BatchOf(tokens=64),
    "sequences": BatchOf(sequences=4),
    "blocks": BatchOf(sequences=2, length=16, packing="blocks"),
    "documents": BatchOf(tokens=32, length=16, packing="documents"),
}


def loader(shards, batch=BATCHES["tokens"], workers=0, accumulate=1, seed=3, objective=None, **order) -> Loader:
    return Loader(shards, Order(shards.sizes, batch, seed, **order), objective or Noisy(), seed, workers, accumulate)


def plain(value):
    """A feed as text, to the bit."""
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes().hex())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return plain(vars(value)) if isinstance(value, Feed) else value


def taken(loader: Loader, n: int, start=BEGIN):
    return [([plain(feed) for feed in feeds], position) for feeds, position in islice(loader.steps(start), n)]


@pytest.mark.parametrize("kind", BATCHES)
def test_workers_and_restarts_change_nothing(shards, kind) -> None:
    here = taken(loader(shards, BATCHES[kind], accumulate=3), 12)
    assert here[-1][1].epoch >= 1
    assert taken(loader(shards, BATCHES[kind], workers=2, accumulate=3), 12) == here
    for at in (1, 4, 9):
        start = here[at - 1][1]
        assert taken(loader(shards, BATCHES[kind], accumulate=3), 12 - at, start) == here[at:]
    assert taken(loader(shards, BATCHES[kind], workers=2, accumulate=3), 12 - at, start) == here[at:]


def test_each_batch_draws_its_own(shards) -> None:
    steps = [step for rank in (0, 1) for step in taken(loader(shards, world=2, rank=rank), 20)]
    noise = [feed["labels"]["noise"][2][:8] for feeds, _ in steps for feed in feeds]
    assert len(set(noise)) == len(noise)
    other = [feed["labels"]["noise"][2][:8] for feeds, _ in taken(loader(shards, seed=4), 40) for feed in feeds]
    assert not set(noise) & set(other)


def test_global_random_states_stay(shards) -> None:
    for workers in (0, 2):
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        taken(loader(shards, workers=workers), 3)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]


def test_steps_cross_epochs(shards) -> None:
    batches = loader(shards, BatchOf(sequences=10))
    assert batches.order.per_epoch == 5
    positions = [position for _, position in taken(loader(shards, BatchOf(sequences=10), accumulate=3), 5)]
    assert positions == [Position(0, 3), Position(1, 1), Position(1, 4), Position(2, 2), Position(3, 0)]
    accumulated = loader(shards, BatchOf(sequences=10), accumulate=3)
    assert [accumulated.steps_in(e) for e in (0.1, 1, 1.2, 3)] == [1, 2, 2, 5]
    assert all(len(feeds) == 3 for feeds, _ in islice(accumulated.steps(), 5))


def test_an_epoch_holds_every_sample_once(shards) -> None:
    for workers in (0, 2):
        feeds = list(loader(shards, workers=workers).once())
        assert sorted(i for feed in feeds for i in feed.samples) == list(range(50))
        assert [id.tolist() for id in feeds[0].ids] == [shards[i]["ids"].tolist() for i in feeds[0].samples]


def test_packing_joins_or_keeps_apart(tmp_path) -> None:
    shards = shards_of(tmp_path, [5, 6, 7])
    stream = [id for sample in shards for id in sample["ids"].tolist()]
    (joined,) = loader(shards, BatchOf(sequences=9, length=8, packing="blocks"), shuffle=False).once()
    assert [ids.tolist() for ids in joined.ids] == [stream[:9], stream[8:17], stream[16:]]
    (apart,) = loader(shards, BatchOf(sequences=9, length=8, packing="documents"), shuffle=False).once()
    assert [len(ids) for ids in apart.ids] == [5, 5, 2, 7]
    assert apart.samples == [0, 1, 2]


def test_columns_that_are_no_stream_are_not_packed(tmp_path) -> None:
    encode = lambda record: [{"ids": np.arange(3, dtype=np.int32), "label": np.array([1], np.int32)}]  # noqa: E731
    shards = build([Placed({}, "x:1")], encode, tmp_path / "s", {}, size=lambda s: len(s["ids"]), bad=Bad())
    with pytest.raises(InputError, match=r"x:1\): column 'label' has 1 values for 3 tokens"):
        next(loader(shards, BatchOf(sequences=1, length=2, packing="blocks")).once())


def test_a_parent_that_has_run_threads_may_fork(tmp_path) -> None:
    """libgomp's threads are gone in a forked child, where a parallel loop would wait for them forever."""
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from itertools import islice
torch.set_num_threads(2)
big = torch.randn(600, 600)
print((big @ big).exp().sum().item() > 0)
from tests.train.test_loader import loader, shards_of, taken
torch.set_num_threads(2)
(big @ big).exp().sum()
shards = shards_of(Path({str(tmp_path)!r}), [9] * 40)
print(len(taken(loader(shards, workers=2), 20)))
(big @ big).exp().sum()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment)
    assert ran.stdout.split() == ["True", "20"], ran.stderr


def test_errors_name_the_records(shards) -> None:
    def refuse(samples):
        raise InputError("no good")

    for workers in (0, 2):
        objective = Noisy()
        objective.on = refuse
        with pytest.raises(InputError, match=r"^batch 0 of epoch 0 \(a.txt:\d+, a.txt:\d+, a.txt:\d+, …\): no good$"):
            next(loader(shards, BatchOf(sequences=5), workers=workers, objective=objective).steps())
        assert not active_children()
    with pytest.raises(InputError, match="batch 999 of epoch 2 isn't there"):
        next(loader(shards).steps(Position(2, 999)))


def slow(seconds):
    objective = Noisy()
    calls = []

    def wait(samples):
        calls.append(1)
        if len(calls) > 1:
            time.sleep(seconds)

    objective.on = wait
    return objective


def test_a_killed_worker_is_an_error(shards) -> None:
    steps = loader(shards, workers=2, objective=slow(60)).steps()
    next(steps)
    victim = active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(QkvError, match=rf"a process that makes batches died .*{victim.pid}.*data.workers = 0"):
        list(islice(steps, 5))
    assert time.monotonic() - start < 30
    assert not active_children()


class Stop(BaseException):
    pass


def test_a_signal_ends_the_wait(shards) -> None:
    """And workers leave the parent's handlers alone, as Ctrl-C reaches the whole group."""

    def handler(number, frame):
        raise Stop

    before = {number: signal.signal(number, handler) for number in (signal.SIGALRM, signal.SIGINT)}
    child = signal.getsignal(signal.SIGCHLD)
    try:
        steps = loader(shards, workers=2, objective=slow(60)).steps()
        next(steps)
        assert signal.getsignal(signal.SIGCHLD) == child
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
        for worker in active_children():
            os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.2)
        assert len(active_children()) == 2
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.monotonic()
        with pytest.raises(Stop):
            list(islice(steps, 5))
        assert time.monotonic() - start < 4  # 1 s for both to end, and no more
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    assert not active_children()


def test_workers_end_with_the_iterator(shards) -> None:
    steps = loader(shards, workers=2).steps()
    next(steps)
    assert len(active_children()) == 2
    steps.close()
    assert not active_children()


def test_positions_follow_each_other(shards) -> None:
    batches = loader(shards)
    positions = [Position(), *(position for _, position in taken(batches, 30))]
    for one, two in pairwise(positions):
        assert two in (Position(one.epoch, one.batch + 1), Position(one.epoch + 1, 0))
        assert two.batch or one.batch + 1 == batches.order.count(one.epoch)
