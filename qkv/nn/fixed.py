"""What a decoder keeps of an encoder: the keys and values of its states, made once.

S  tokens of the encoded sequences    G  key/value heads    D  head_dim    C  dim
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.nn.attend import Keys
from qkv.nn.batch import Batch
from qkv.nn.cache import Kept, Storage


@dataclass(frozen=True)
class Memory:
    """What an encoder has made of some sequences: states [S, C] of a batch."""

    states: Tensor
    batch: Batch


class Source(Kept):
    """What cross-attention looks at: it was made once, and doesn't grow with the sequences that look."""

    @abstractmethod
    def look(self, batch: Batch) -> Keys:
        """What each sequence of a step's batch may look at: all of its own. InputError: there are more or fewer."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """It doesn't grow with the sequences."""

    def reserve(self, tokens: int) -> None:
        """It doesn't grow with the sequences."""


class Fixed(Source):
    """Keys and values of another sequence, made once: what cross-attention looks at. `lengths`: of those sequences;
    `sources`: which of the encoded ones each row is; `computed`: the dtype that they are seen in."""

    def __init__(self, k: Tensor, v: Tensor, batch: Batch) -> None:
        """k and v [S, G, D] of the `batch` of these sequences."""
        self.k, self.v, self.computed = batch.grid(k).transpose(1, 2), batch.grid(v).transpose(1, 2), k.dtype
        self.lengths = list(batch.lengths)
        self.sources = list(range(len(self.lengths)))

    def look(self, batch: Batch) -> Keys:
        if len(batch.lengths) != len(self.lengths):
            raise InputError(f"{len(batch.lengths)} targets for {len(self.lengths)} sequences that were encoded")

        def positions() -> Tensor:
            slots = torch.arange(self.k.shape[2], device=self.k.device)[None]
            return torch.where(slots < torch.tensor(self.lengths, device=slots.device)[:, None], slots, -1)

        equal = len(set(self.lengths)) == 1
        seen = self.k.to(self.computed), self.v.to(self.computed)
        return Keys(*seen, lambda: batch.once("fixed", positions), "fixed", equal)

    def keep_in(self, dtype: torch.dtype | None) -> None:
        self.k, self.v = self.k.to(dtype or self.computed), self.v.to(dtype or self.computed)

    def select(self, rows: Sequence[int]) -> None:
        before, self.sources = self.sources, [self.sources[r] for r in rows]
        if self.sources == before:  # a beam search's steps, within each prompt's own rows
            return
        index = torch.tensor(list(rows), device=self.k.device)
        self.k, self.v, self.lengths = self.k[index], self.v[index], [self.lengths[r] for r in rows]
        longest = max(self.lengths)
        self.k, self.v = self.k[:, :, :longest], self.v[:, :, :longest]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


class Both(Kept):
    """A decoder layer's own keys and values, and those of the encoder's states."""

    def __init__(self, own: Storage, fixed: Source) -> None:
        self.own, self.fixed = own, fixed

    def select(self, rows: Sequence[int]) -> None:
        self.own.select(rows)
        self.fixed.select(rows)

    def truncate(self, lengths: Sequence[int]) -> None:
        self.own.truncate(lengths)

    def undoable(self, length: int) -> int:
        return self.own.undoable(length)

    def reserve(self, tokens: int) -> None:
        self.own.reserve(tokens)

    def keep_in(self, dtype: torch.dtype | None) -> None:
        self.own.keep_in(dtype)
        self.fixed.keep_in(dtype)

    @property
    def nbytes(self) -> int:
        return self.own.nbytes + self.fixed.nbytes
