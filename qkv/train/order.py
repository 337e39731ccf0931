"""Which samples are in which batch: a pure function of the sizes, the seed and the epoch, the same on every machine.

An epoch is drawn by a generator of its own, PCG64 of SeedSequence([seed, epoch]); torch's and NumPy's global random
states are neither read nor changed.

- By `tokens`: samples are shuffled, sorted by size within windows of about 100 batches, and cut where the next one
  would take the batch beyond the budget. True tokens count, as the stream has no padding. Then batches are shuffled.
- By `sequences`: samples are shuffled and cut every so many.
- Packed: texts are shuffled, joined, and cut every `length` tokens, in each epoch at other places: the first cut is
  drawn. Blocks are then shuffled and cut into batches. To a block's tokens comes the one behind them, which the next
  block begins with: so a model reads `length` tokens of each and predicts as many. ("documents": behind each piece of a
  text stands the text's next token, so that the last of a text is not read, and one of a single token is left out.)

The last, short batch (and the first and last, short block) are kept. Over `world` ranks, batches that stand together
are dealt one to each rank, so that a step's batches are of like lengths; where their number doesn't divide, some are
cut in two so that it does. Only where batches hold one sequence each does an epoch leave some out; `notes` says so.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from qkv.errors import ConfigError, InputError
from qkv.train import recipe

WINDOW = 100  # batches, about, whose samples are sorted together


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a sample."""

    sample: int
    start: int
    stop: int


Block = list[Piece]
Batch = list[int] | list[Block]


class Order:
    """`sizes`: tokens of each sample. `batch`: the recipe's. `shuffle` off: samples in their own order (by `tokens`,
    sorted by size), each epoch the same, for evaluation.

    InputError: no sample, a sample beyond the budget, fewer samples than ranks. ConfigError: a budget below a block."""

    def __init__(
        self,
        sizes: NDArray[np.int32],
        batch: recipe.BatchOf,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world}")
        self.seed, self.rank, self.world, self.shuffle = seed % 2**64, rank, world, shuffle
        self.batch = batch
        self._sizes = np.asarray(sizes, np.int64)
        if not len(sizes):
            raise InputError("there is no sample to make batches of")
        if not self._sizes.any():
            raise InputError(f"all of {len(sizes)} samples are empty")
        self._check()
        self._global = lru_cache(maxsize=2)(self._draw)  # the loop asks for an epoch's count, then for its batches

    def _check(self) -> None:
        batch, longest = self.batch, int(self._sizes.max())
        if batch.packing != "none" and batch.length is not None:
            if batch.tokens is not None and batch.tokens < batch.length:
                raise ConfigError(f"batch.tokens is {batch.tokens}, less than one block of batch.length {batch.length}")
            if not len(self._blocks(None)):
                raise InputError("nothing to predict: no two tokens of the data follow each other in a text")
        elif batch.tokens is not None and longest > batch.tokens:
            raise InputError(
                f"sample {int(self._sizes.argmax())} has {longest} tokens and batch.tokens is {batch.tokens}: raise "
                "it, or lower batch.length and say what becomes of long texts (objective.on_long)"
            )

    def epoch(self, e: int) -> "Batches":
        """This rank's batches of epoch `e`, in order: numbers of samples or, packed, blocks."""
        drawn = self._global(e)
        return Batches(drawn, range(self.rank, len(drawn), self.world))

    def count(self, e: int) -> int:
        """How many batches each rank has in epoch `e`. By tokens, or packed, epochs differ by a few."""
        return len(self._global(e)) // self.world

    @property
    def per_epoch(self) -> int:
        """Batches of a rank in the first epoch."""
        return self.count(0)

    @property
    def notes(self) -> list[str]:
        """What an epoch leaves out, in words; mostly nothing."""
        left = self._global(0).left
        what = "sequence" if self.batch.packing == "none" else "block"
        return (
            [f"each epoch leaves out {left} {what}(s), others each time: {self.world} ranks share them"] if left else []
        )

    def _draw(self, e: int) -> "_Drawn":
        """The batches of all ranks."""
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, e])))
        blocks = self._blocks(draw) if self.batch.packing != "none" else None
        if blocks is not None:
            assert self.batch.length is not None
            each = self.batch.sequences or (self.batch.tokens or 0) // self.batch.length
            order, cuts = self._shuffled(len(blocks), draw), _every(len(blocks), each)
        elif self.batch.tokens is not None:
            order = self._bucketed(draw)
            cuts = _by_budget(self._sizes[order], self.batch.tokens)
        else:
            order = self._shuffled(len(self._sizes), draw)
            cuts = _every(len(order), self.batch.sequences or 1)
        if len(order) < self.world:
            raise InputError(f"{self.world} ranks can't share {len(order)} sequence(s): start fewer")
        cuts = _divided(cuts, self.world)
        if left := len(cuts) % self.world:  # all have one sequence each
            order = order[np.sort(self._shuffled(len(order), draw)[:-left])]
            cuts = _every(len(order), 1)
        deal = self._shuffled(len(cuts) // self.world, draw)
        return _Drawn(order, cuts, deal, self.world, blocks, left)

    def _shuffled(self, n: int, draw: np.random.Generator) -> NDArray[np.int64]:
        return draw.permutation(n) if self.shuffle else np.arange(n)

    def _bucketed(self, draw: np.random.Generator) -> NDArray[np.int64]:
        """Shuffled, and sorted within windows, up and down by turns so that neighbours are alike across their edges."""
        assert self.batch.tokens is not None
        order = self._shuffled(len(self._sizes), draw)
        if not self.shuffle:
            return order[np.argsort(self._sizes[order], kind="stable")]
        each = max(1, int(self.batch.tokens / max(1.0, float(self._sizes.mean()))))
        windows = []
        for number, start in enumerate(range(0, len(order), WINDOW * each)):
            window = order[start : start + WINDOW * each]
            window = window[np.argsort(self._sizes[window], kind="stable")]
            windows.append(window[::-1] if number % 2 else window)
        return np.concatenate(windows)

    def _blocks(self, draw: np.random.Generator | None) -> "_Blocks":
        """`draw` None: texts in their own order."""
        assert self.batch.length is not None
        drawn = draw if self.shuffle else None
        order = np.arange(len(self._sizes)) if drawn is None else drawn.permutation(len(self._sizes))
        first = 0 if drawn is None else int(drawn.integers(self.batch.length))
        return _Blocks(order, self._sizes[order], self.batch.length, first, apart=self.batch.packing == "documents")


class _Blocks:
    """Texts in a row, cut every `length` tokens, first after `first`; with the token that follows each block or, where
    texts are `apart`, each piece."""

    def __init__(
        self, order: NDArray[np.int64], sizes: NDArray[np.int64], length: int, first: int, apart: bool
    ) -> None:
        self._order = order
        self._inside, self._behind = int(apart), int(not apart)
        self._ends = np.cumsum(np.maximum(sizes - self._inside, 0))
        total = int(self._ends[-1]) - self._behind  # tokens that are read: the last of all, or of each text, is not
        self._cuts = np.array([0, *range(first or length, total, length), *([total] if total else [])], np.int64)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __getitem__(self, i: int) -> Block:
        at, stop = int(self._cuts[i]), int(self._cuts[i + 1]) + self._behind
        text = int(np.searchsorted(self._ends, at, side="right"))
        pieces = []
        while at < stop:
            end = int(self._ends[text])
            start = int(self._ends[text - 1]) if text else 0
            until = min(stop, end)
            if until > at:  # an empty text has no piece
                pieces.append(Piece(int(self._order[text]), at - start, until - start + self._inside))
            at, text = until, text + 1
        return pieces


class _Drawn:
    """All batches of an epoch: items of `order` between `cuts`, `world` that stand together dealt at once."""

    def __init__(
        self,
        order: NDArray[np.int64],
        cuts: list[int],
        deal: NDArray[np.int64],
        world: int,
        blocks: _Blocks | None,
        left: int,
    ) -> None:
        self._order, self._cuts, self._deal, self._world, self._blocks = order, [0, *cuts], deal, world, blocks
        self.left = left  # sequences that no batch holds

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __getitem__(self, i: int) -> Batch:
        group, rank = divmod(i, self._world)
        number = int(self._deal[group]) * self._world + rank
        items: list[int] = self._order[self._cuts[number] : self._cuts[number + 1]].tolist()
        return items if self._blocks is None else [self._blocks[item] for item in items]


class Batches(Sequence[Batch]):
    """A rank's batches of an epoch, made when they are asked for."""

    def __init__(self, drawn: _Drawn, numbers: range) -> None:
        self._drawn, self._numbers = drawn, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> Batch: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Batch]: ...
    def __getitem__(self, i: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(i, slice):
            return [self._drawn[number] for number in self._numbers[i]]
        return self._drawn[self._numbers[i]]

    def __iter__(self) -> Iterator[Batch]:
        return (self._drawn[number] for number in self._numbers)


def _every(n: int, each: int) -> list[int]:
    """Where batches of `each` end."""
    return [*range(each, n, each), n]


def _by_budget(sizes: NDArray[np.int64], tokens: int) -> list[int]:
    """Where batches of at most `tokens` end, each as long as it can be."""
    ends, held = [], 0
    for i, size in enumerate(sizes.tolist()):
        if held and held + size > tokens:
            ends.append(i)
            held = 0
        held += size
    return [*ends, len(sizes)]


def _divided(cuts: list[int], world: int) -> list[int]:
    """The largest batches cut in two until their number is a multiple of `world`, as far as they hold two samples."""
    lengths = np.diff([0, *cuts])
    missing = -len(cuts) % world
    while missing:
        largest = np.argsort(-lengths, kind="stable")[:missing]
        halves = [int(cuts[i] - lengths[i] // 2) for i in largest if lengths[i] > 1]
        if not halves:
            break
        cuts = sorted([*cuts, *halves])
        lengths, missing = np.diff([0, *cuts]), missing - len(halves)
    return cuts
