"""Batches as feeds, made ahead by worker processes: the same feeds with any number of them, and after any restart.

A batch is drawn by a generator of its own, from the seed, the epoch and the batch's number, so nothing is replayed to
resume at it. On Linux workers are forked (elsewhere they are spawned, and what they need is pickled): a forked child
may use torch as long as it stays on one thread, which DataLoader sees to, as the parent's OpenMP threads aren't there.
Feeds come back as bytes and not in shared memory: no file descriptor for each tensor, and a kill leaves nothing in
/dev/shm.
"""

import io
import multiprocessing
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qkv.errors import InputError, QkvError
from qkv.train.objective import Feed, Objective, Sample
from qkv.train.order import Batch, Block, Order
from qkv.train.shards import Shards

AHEAD = 4  # batches that each worker makes before they are asked for
GRACE = 1.0  # seconds that workers have to end
_OURS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True)
class Position:
    """The next batch of this rank: its epoch, and its number in it. Where an epoch ends, the next one's first."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class _Job:
    epoch: int
    number: int  # among the batches of all ranks
    batch: Batch


class Loader:
    """`accumulate` batches are a step. An epoch's last step may take its last batches from the next epoch, so that all
    steps are of as many batches; only `once` ends with its epoch."""

    def __init__(
        self, shards: Shards, order: Order, objective: Objective, seed: int, workers: int = 0, accumulate: int = 1
    ) -> None:
        self.order, self.workers, self.accumulate = order, workers, accumulate
        self._maker = _Maker(shards, objective, seed % 2**64, order.batch.packing)

    def steps(self, start: Position = Position()) -> Generator[tuple[list[Feed], Position], None, None]:
        """Without an end: a step's feeds, and the position after it, from which another Loader goes on bit for bit.

        A Python signal handler that raises ends the wait for a batch; the iterator is then spent, and its workers are
        gone, as they are when it is closed. QkvError: a worker died. InputError: a position that isn't there; what
        `collate` raises, with the records' places."""
        feeds: list[Feed] = []
        for feed, position in self._feeds(self._jobs(start)):
            feeds.append(feed)
            if len(feeds) == self.accumulate:
                yield feeds, position
                feeds = []

    def once(self, epoch: int = 0) -> Iterator[Feed]:
        """The feeds of one epoch. Errors as `steps`."""
        for feed, _ in self._feeds(self._epoch(epoch, 0)):
            yield feed

    def steps_in(self, epochs: float) -> int:
        """How many steps the first `epochs` epochs are, the last one rounded up."""
        whole = int(epochs)
        batches = sum(self.order.count(e) for e in range(whole))
        if epochs > whole:
            batches += round((epochs - whole) * self.order.count(whole))
        return max(1, -(-batches // self.accumulate))

    def _jobs(self, start: Position) -> Iterator[tuple[_Job, Position]]:
        epoch, batch, there = start.epoch, start.batch, self.order.count(start.epoch)
        if not 0 <= batch <= there:
            raise InputError(f"batch {batch} of epoch {epoch} isn't there: it has {there}. Did the data change?")
        while True:
            yield from self._epoch(epoch, batch)
            epoch, batch = epoch + 1, 0

    def _epoch(self, epoch: int, start: int) -> Iterator[tuple[_Job, Position]]:
        batches = self.order.epoch(epoch)
        for i in range(start, len(batches)):
            after = Position(epoch, i + 1) if i + 1 < len(batches) else Position(epoch + 1, 0)
            yield _Job(epoch, i * self.order.world + self.order.rank, batches[i]), after

    def _feeds(self, jobs: Iterator[tuple[_Job, Position]]) -> Iterator[tuple[Feed, Position]]:
        if not self.workers:
            yield from ((self._maker.feed(job), position) for job, position in jobs)
            return
        asked: deque[Position] = deque()

        def asking() -> Iterator[_Job]:
            for job, position in jobs:
                asked.append(position)
                yield job

        made = _started(self._maker, asking(), self.workers)
        try:
            while (feed := _next(made)) is not None:
                yield feed, asked.popleft()
        finally:
            _end(made)


def _started(maker: "_Maker", jobs: Iterator[_Job], workers: int) -> Iterator[bytes]:
    loader: DataLoader[bytes] = DataLoader(
        maker,
        batch_size=None,
        sampler=cast(Any, jobs),  # any iterable will do; one item is one batch
        num_workers=workers,
        collate_fn=cast(Any, _as_it_is),
        prefetch_factor=AHEAD,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # else it draws from the global one
        multiprocessing_context="fork" if sys.platform == "linux" else multiprocessing.get_start_method(),
    )
    with _until_workers_run():
        return iter(loader)


def _end(made: Any) -> None:
    """DataLoader's own shutdown comes when the iterator is collected, which a traceback can put off, and waits 5 s for
    each worker that is stuck. An idle one has gone at once, so that none is killed while it holds a lock."""
    if made._shutdown:  # of itself, after the last batch
        return
    made._workers_done_event.set()
    for queue in made._index_queues:
        queue.put(None)
    end = time.monotonic() + GRACE
    for worker in made._workers:
        worker.join(max(0.0, end - time.monotonic()))
        if worker.is_alive():
            worker.kill()
    made._shutdown_workers()


def _next(made: Iterator[bytes]) -> Feed | None:
    try:
        packed = next(made, None)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "killed by signal" not in str(error):
            raise
        raise QkvError(
            f"a process that makes batches died ({error}): something killed it, or there was no memory left. "
            "data.workers = 0 does without"
        ) from None
    if packed is None:
        return None
    feed = pickle.loads(packed)  # what our own worker made a moment ago
    if isinstance(feed, QkvError):
        raise feed
    return cast(Feed, feed)


@contextmanager
def _until_workers_run() -> Iterator[None]:
    """What belongs to this process's signals stays with it.

    A handler of the parent must not run in a child that is just starting: they are held back. And DataLoader's own
    handler of SIGCHLD goes: it raises anywhere, as in the middle of a checkpoint, where a dead worker matters only to
    who waits for it, which is found out within 5 s."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS) if hasattr(signal, "pthread_sigmask") else set()
    try:
        yield
    finally:
        if main and before is not None:
            signal.signal(signal.SIGCHLD, before)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _begin(worker: int) -> None:
    """In a new worker: Ctrl-C and its like, which a terminal sends to all, are the parent's to answer."""
    for number in _OURS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)


def _as_it_is(value: bytes) -> bytes:
    return value


class _Maker(Dataset[bytes]):
    """A job → its feed."""

    def __init__(self, shards: Shards, objective: Objective, seed: int, packing: str) -> None:
        self.shards, self.objective, self.seed = shards, objective, seed
        self.samples = _SAMPLES[packing]

    def __getitem__(self, job: _Job) -> bytes:
        try:
            made: Feed | QkvError = self.feed(job)
        except QkvError as error:
            made = error
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=5).dump(made)
        return buffer.getvalue()

    def feed(self, job: _Job) -> Feed:
        sequence = np.random.SeedSequence([self.seed, job.epoch], spawn_key=(job.number,))
        numbers = list(dict.fromkeys(item for items in job.batch for item in _numbers(items)))
        try:
            samples = self.samples(self.shards, job.batch)
            feed = self.objective.collate(samples, np.random.Generator(np.random.PCG64(sequence)))
        except InputError as error:
            places = ", ".join(self.shards.where(number) for number in numbers[:3]) + (", …" if numbers[3:] else "")
            raise InputError(f"batch {job.number} of epoch {job.epoch} ({places}): {error}") from error
        feed.samples = numbers
        return feed


def _numbers(items: int | Block) -> list[int]:
    return [items] if isinstance(items, int) else [piece.sample for piece in items]


def _whole(shards: Shards, batch: Batch) -> list[Sample]:
    return [shards[cast(int, number)] for number in batch]


def _joined(shards: Shards, batch: Batch) -> list[Sample]:
    """Each block one sample: its pieces after one another."""
    blocks = [[shards.cut(*piece) for piece in cast(Block, block)] for block in batch]
    return [{column: np.concatenate([piece[column] for piece in block]) for column in block[0]} for block in blocks]


def _apart(shards: Shards, batch: Batch) -> list[Sample]:
    """Each piece a sample."""
    return [shards.cut(*piece) for block in batch for piece in cast(Block, block)]


_SAMPLES: dict[str, Callable[[Shards, Batch], Sequence[Sample]]] = {
    "none": _whole,
    "blocks": _joined,
    "documents": _apart,
}


class _Pickler(pickle.Pickler):
    """Tensors as NumPy's arrays, a hundred times quicker than torch's own way for small ones."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return NotImplemented
