"""The cache: what a model remembers of the tokens it has read, so that the next step reads only the new ones.

One interface, several storages. `extend` takes a step's new keys and values and gives what its queries may look at.
The cache owns the offsets: how many tokens of each sequence are there.

T  new tokens in the stream    B  sequences    G  key/value heads    D  head_dim    K  keys held
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.nn.attend import Keys, Run, Seen
from qkv.nn.batch import Batch


class Kept(ABC):
    """What one layer keeps of some sequences."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order (one may be asked for twice)."""

    @abstractmethod
    def truncate(self, lengths: Sequence[int]) -> None:
        """Go back to so many tokens of each sequence. InputError, before anything changes: what is to be seen again
        is gone."""

    def undoable(self, length: int) -> int:
        """How many tokens may be read behind so many of a sequence so that `truncate` can take them back."""
        return UNLIMITED

    @abstractmethod
    def reserve(self, tokens: int) -> None:
        """Before the first step: hold enough that this many tokens are always undoable. Later: nothing changes."""

    @abstractmethod
    def keep_in(self, dtype: torch.dtype | None) -> None:
        """Before the first step: hold keys and values in this dtype, each rounded to the nearest; None: as they come.
        What is no key or value stays as it is."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory held, in bytes."""


class Storage(Kept):
    """Where one layer's keys and values live."""

    @abstractmethod
    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Seen:
        """Take k and v [T, G, D] of the new tokens; give all that their queries may see."""


UNLIMITED = 2**62  # tokens, or slots
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PADDED = 4  # times the scores
MOST_RUNS = 64  # beyond, one large attention with padding is faster than many small ones


def side_by_side(k: Tensor, v: Tensor, batch: Batch) -> Keys:
    """A step's own keys and values as a grid [B, G, L, D]."""

    def positions() -> Tensor:
        if batch.equal:
            return batch.grid_positions
        columns = torch.arange(max(batch.lengths), device=k.device)
        lengths, starts = (torch.tensor(list(x), device=k.device)[:, None] for x in (batch.lengths, batch.starts))
        return torch.where(columns < lengths, starts + columns, -1)

    k, v = batch.grid(k).transpose(1, 2), batch.grid(v).transpose(1, 2)
    return Keys(k, v, lambda: batch.once("stream", positions), "stream", batch.aligned and batch.starts[0] == 0)


def _padded_learns_sooner(batch: Batch) -> bool:
    """One attention with padding takes less time to learn from than one for each length, if its scores aren't many more
    than there are: each has a gradient, and costs, of its own."""
    scores = len(batch.lengths) * max(batch.lengths) ** 2
    return torch.is_grad_enabled() and scores <= PADDED * sum(n * n for n in batch.lengths)


class Stream(Storage):
    """Remembers nothing: a step's queries see its own keys, rounded as a cache would hold them."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Seen:
        """Sequences of one length at a time, where there are not too many lengths: so nothing is padded or masked."""
        if self.dtype is not None:
            k, v = k.to(self.dtype).to(k.dtype), v.to(self.dtype).to(v.dtype)
        if batch.equal or len(batch.runs) > MOST_RUNS or _padded_learns_sooner(batch):
            return side_by_side(k, v, batch)
        return [Run(at, side_by_side(k[at], v[at], part), part) for at, part in batch.runs]

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is held."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Nothing is held."""

    def reserve(self, tokens: int) -> None:
        """Nothing is held."""

    def keep_in(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        return 0


class Held(Storage):
    """Keys and values in tensors [B, G, slots, D], made at the first step.

    `at_once`: the slots to make there and then; None: doubled whenever they are full, up to `most`. A step's own keys
    are seen as they are held, so that a text cut elsewhere has no other answer."""

    def __init__(self, at_once: int | None, most: int = UNLIMITED) -> None:
        self.at_once, self.most = at_once, most
        self.dtype: torch.dtype | None = None
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def keep_in(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype

    def select(self, rows: Sequence[int]) -> None:
        if self.k is not None and self.v is not None:
            index = torch.tensor(list(rows), device=self.k.device)
            self.k, self.v = self.k[index], self.v[index]

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self.k, self.v) if x is not None)

    def room(self, like: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Keys and values with slots for this step's tokens too, what was there at the front."""
        if not any(batch.starts):
            self.k = self.v = None  # whatever a first step that was cut off has left
        needed = min(max(batch.ends), self.most)
        if self.k is not None and self.v is not None and self.k.shape[2] >= needed:
            return self.k, self.v
        slots = self.at_once or min(self.most, max(64, 1 << (needed - 1).bit_length()))

        def grown(old: Tensor | None) -> Tensor:
            new = like.new_zeros(len(batch.lengths), like.shape[1], slots, like.shape[2], dtype=self.dtype)
            if old is not None:
                new[:, :, : old.shape[2]] = old
            return new

        self.k, self.v = grown(self.k), grown(self.v)
        return self.k, self.v


class Contiguous(Held):
    """Every key, position j in slot j. Room for `length` tokens a sequence; None: it grows."""

    def __init__(self, length: int | None = None) -> None:
        super().__init__(at_once=length)

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        computed = k.dtype
        K, V = self.room(k, batch)
        k, v, end = k.to(K.dtype), v.to(V.dtype), max(batch.ends)
        if batch.aligned:
            start = batch.starts[0]
            K[:, :, start:end] = batch.grid(k).transpose(1, 2)
            V[:, :, start:end] = batch.grid(v).transpose(1, 2)
        else:
            K[batch.rows, :, batch.positions] = k
            V[batch.rows, :, batch.positions] = v

        def positions() -> Tensor:
            slots = torch.arange(end, device=k.device)[None]
            if batch.aligned:
                return slots
            return torch.where(slots < torch.tensor(batch.ends, device=k.device)[:, None], slots, -1)

        used = (slice(None), slice(None), slice(end))
        seen = K[used].to(computed), V[used].to(computed)
        return Keys(*seen, lambda: batch.once("contiguous", positions), "contiguous", batch.aligned)

    def truncate(self, lengths: Sequence[int]) -> None:
        """A slot behind a sequence's end is never seen: that was so before anything was there."""

    def reserve(self, tokens: int) -> None:
        """All are undoable."""


class Cache:
    """What a model holds of some sequences: one storage a layer, one length a sequence.

    `lengths` is empty until the first step, which says how many sequences there are. `dtype`: of the keys and values
    held; None: as they come. InputError: it is none of DTYPES."""

    def __init__(self, layers: Sequence[Kept], limit: int | None = None, dtype: torch.dtype | None = None) -> None:
        if dtype is not None and dtype not in DTYPES:
            known = ", ".join(str(one).removeprefix("torch.") for one in DTYPES)
            raise InputError(f"a cache holds keys and values in {known}, not in {str(dtype).removeprefix('torch.')}")
        self.layers, self.limit, self.dtype = list(layers), limit, dtype
        self.lengths: list[int] = []
        for storage in self.layers:
            storage.keep_in(dtype)

    def starts(self, lengths: Sequence[int]) -> list[int]:
        """Where the next `lengths` tokens begin. InputError: another number of sequences, or no room."""
        starts = self.lengths or [0] * len(lengths)
        if len(starts) != len(lengths):
            raise InputError(f"this cache holds {len(starts)} sequences, the input has {len(lengths)}")
        end = max(s + n for s, n in zip(starts, lengths, strict=True))
        if self.limit is not None and end > self.limit:
            raise InputError(f"{end} tokens don't fit this cache of {self.limit}; ask new_cache for more length")
        return starts

    def tables(self, batch: Batch) -> Tensor | None:
        """Where the batch's sequences have their keys: the pages of each [B, P]. None: each has a place of its own."""
        return None

    def advance(self, batch: Batch) -> None:
        """The step is done: its tokens are part of the past."""
        self.lengths = batch.ends

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order. InputError: none, or one that isn't there."""
        if not rows or not all(0 <= row < len(self.lengths) for row in rows):
            raise InputError(f"this cache holds {len(self.lengths)} sequences; it can't keep {list(rows)} of them")
        for storage in self.layers:
            storage.select(rows)
        self.lengths = [self.lengths[r] for r in rows]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Go back to so many tokens of each sequence, as if the rest had never been read. InputError, and nothing has
        changed: other sequences, more tokens than there are, or a window's older keys are gone (see `undoable`)."""
        if len(lengths) != len(self.lengths) or not all(
            0 <= n <= m for n, m in zip(lengths, self.lengths, strict=True)
        ):
            raise InputError(f"this cache holds {self.lengths} tokens; it can't go back to {list(lengths)}")
        for storage in self.layers:
            storage.truncate(lengths)
        self.lengths = list(lengths)

    def undoable(self, length: int) -> int:
        """How many tokens may be read behind the first `length` of a sequence so that all can be taken back."""
        return min(storage.undoable(length) for storage in self.layers)

    def reserve(self, tokens: int) -> None:
        """Before the first step: make sure that this many tokens are always undoable, which costs a window's cache as
        many more slots. A cache that holds something stays as it is."""
        if not self.lengths:
            for storage in self.layers:
                storage.reserve(tokens)

    @property
    def nbytes(self) -> int:
        """Memory held by all layers, in bytes."""
        return sum(storage.nbytes for storage in self.layers)
