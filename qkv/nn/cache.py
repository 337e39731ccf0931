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
from qkv.nn.attend import Keys
from qkv.nn.batch import Batch


class Storage(ABC):
    """Where one layer's keys and values live."""

    @abstractmethod
    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        """Take k and v [T, G, D] of the new tokens; give all that their queries may see."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order (one may be asked for twice)."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory held, in bytes."""


class Stream(Storage):
    """Remembers nothing: a step's queries see its own keys."""

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        def positions() -> Tensor:
            if batch.equal:
                return batch.grid_positions
            columns = torch.arange(max(batch.lengths), device=k.device)
            lengths, starts = (torch.tensor(list(x), device=k.device)[:, None] for x in (batch.lengths, batch.starts))
            return torch.where(columns < lengths, starts + columns, -1)

        k, v = batch.grid(k).transpose(1, 2), batch.grid(v).transpose(1, 2)
        return Keys(k, v, lambda: batch.once("stream", positions), "stream", batch.equal)

    def select(self, rows: Sequence[int]) -> None:
        """Nothing is held."""

    @property
    def nbytes(self) -> int:
        return 0


class _Held(Storage):
    """Keys and values in tensors [B, G, slots, D], made at the first step."""

    k: Tensor | None = None
    v: Tensor | None = None

    def select(self, rows: Sequence[int]) -> None:
        if self.k is not None and self.v is not None:
            index = torch.tensor(list(rows), device=self.k.device)
            self.k, self.v = self.k[index], self.v[index]

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self.k, self.v) if x is not None)

    def resize(self, like: Tensor, rows: int, slots: int) -> tuple[Tensor, Tensor]:
        """Room for `slots` keys a sequence, with what was there at the front."""

        def grown(old: Tensor | None) -> Tensor:
            new = like.new_zeros(rows, like.shape[1], slots, like.shape[2])
            if old is not None:
                new[:, :, : old.shape[2]] = old
            return new

        self.k, self.v = grown(self.k), grown(self.v)
        return self.k, self.v


class Contiguous(_Held):
    """Every key, position j in slot j. Room for `length` tokens a sequence, or (None) doubled whenever it is full."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        end = max(batch.ends)
        K, V = self.k, self.v
        if K is None or V is None or K.shape[2] < end:
            K, V = self.resize(k, len(batch.lengths), self.length or max(64, 1 << (end - 1).bit_length()))
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
        return Keys(K[used], V[used], lambda: batch.once("contiguous", positions), "contiguous", batch.aligned)


class Ring(_Held):
    """The last `size` keys, position p in slot p mod size: all that a window of that size can ever see."""

    def __init__(self, size: int) -> None:
        self.size = size

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        K, V = self.k, self.v
        if K is None or V is None:
            K, V = self.resize(k, len(batch.lengths), self.size)
        if max(batch.lengths) == 1:
            self._write(K, V, k, v, batch)
            held = batch.once(("ring", self.size, 1), lambda: self._positions(batch.ends, batch.device))
            return Keys(K, V, lambda: held, ("ring", self.size), False)

        # A chunk's first queries still see keys that its last ones push out: look at old and new side by side.
        def positions() -> Tensor:
            return torch.cat((self._positions(batch.starts, batch.device), stream.positions().expand(rows, -1)), 1)

        rows = len(batch.lengths)
        stream = Stream().extend(k, v, batch)
        seen = torch.cat((K, stream.k), 2), torch.cat((V, stream.v), 2)
        self._write(K, V, k, v, batch)
        return Keys(*seen, lambda: batch.once(("ring", self.size), positions), ("ring", self.size), False)

    def _write(self, K: Tensor, V: Tensor, k: Tensor, v: Tensor, batch: Batch) -> None:
        """The last `size` new tokens of each sequence into their slots."""
        ends = torch.tensor(batch.ends, device=k.device)
        keep = batch.positions >= ends[batch.rows] - self.size
        rows, slots = batch.rows[keep], batch.positions[keep] % self.size
        K[rows, :, slots] = k[keep]
        V[rows, :, slots] = v[keep]

    def _positions(self, ends: Sequence[int], device: torch.device) -> Tensor:
        """[B, size]: the position in each slot once `ends` tokens are there: the largest p < end with p mod size =
        slot; −1 where there is none."""
        slots = torch.arange(self.size, device=device)
        end = torch.tensor(list(ends), device=device)[:, None]
        return (end - 1 - (end - 1 - slots) % self.size).clamp(min=-1)


class Cache:
    """What a model holds of some sequences: one storage a layer, one length a sequence.

    `lengths` is empty until the first step, which says how many sequences there are."""

    def __init__(self, layers: Sequence[Storage], limit: int | None = None) -> None:
        self.layers = list(layers)
        self.limit = limit
        self.lengths: list[int] = []

    def starts(self, lengths: Sequence[int]) -> list[int]:
        """Where the next `lengths` tokens begin. InputError: another number of sequences, or no room."""
        starts = self.lengths or [0] * len(lengths)
        if len(starts) != len(lengths):
            raise InputError(f"this cache holds {len(starts)} sequences, the input has {len(lengths)}")
        end = max(s + n for s, n in zip(starts, lengths, strict=True))
        if self.limit is not None and end > self.limit:
            raise InputError(f"{end} tokens don't fit this cache of {self.limit}; ask new_cache for more length")
        return starts

    def advance(self, batch: Batch) -> None:
        """The step is done: its tokens are part of the past."""
        self.lengths = batch.ends

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order."""
        for storage in self.layers:
            storage.select(rows)
        self.lengths = [self.lengths[r] for r in rows]

    @property
    def nbytes(self) -> int:
        """Memory held by all layers, in bytes."""
        return sum(storage.nbytes for storage in self.layers)
