"""Tokens are a stream: activations are [T, C], and a Batch says where each token belongs.

T  tokens of all sequences, one after another      B  sequences
L  tokens of the longest sequence                  C  any trailing sizes

Only the mixer looks at a Batch. Padding does not exist in the stream; `grid` makes a [B, L] view of it for attention
(a true view where all lengths are equal), and `stream` undoes that.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


@dataclass
class Batch:
    """`lengths[b]` new tokens of sequence b, the first at position `starts[b]` (0, or what a cache already holds).
    `segments` [T]: the kind of each token, for models that tell them apart (None: all are of kind 0). `prompts[b]`: how
    many of a sequence's new tokens, its first ones, are of its prompt (None: none); they may be read with products of
    another rounding, so that a token's numbers never depend on how many are read beside it."""

    lengths: Sequence[int]
    starts: Sequence[int]
    device: torch.device
    segments: Tensor | None = None
    prompts: Sequence[int] | None = None
    _shared: dict[Hashable, object] = field(default_factory=dict, repr=False)

    @cached_property
    def equal(self) -> bool:
        """All sequences have the same number of new tokens: the grid is a view."""
        return len(set(self.lengths)) == 1

    @cached_property
    def aligned(self) -> bool:
        """Equal lengths and equal starts: one mask serves every sequence."""
        return self.equal and len(set(self.starts)) == 1

    @cached_property
    def ends(self) -> list[int]:
        """Tokens of each sequence after this step."""
        return [s + n for s, n in zip(self.starts, self.lengths, strict=True)]

    @cached_property
    def rows(self) -> Tensor:
        """[T]: the sequence of each token."""
        rows = torch.arange(len(self.lengths), device=self.device)
        return rows.repeat_interleave(torch.tensor(list(self.lengths), device=self.device))

    @cached_property
    def columns(self) -> Tensor:
        """[T]: each token's place among its sequence's new tokens."""
        if len(self.lengths) == 1:
            return torch.arange(self.lengths[0], device=self.device)
        return torch.cat([torch.arange(n, device=self.device) for n in self.lengths])

    @cached_property
    def positions(self) -> Tensor:
        """[T]: each token's position in its whole sequence."""
        if len(self.lengths) == 1:
            return torch.arange(self.starts[0], self.ends[0], device=self.device)
        return self.columns + torch.tensor(list(self.starts), device=self.device)[self.rows]

    @cached_property
    def grid_positions(self) -> Tensor:
        """[B, L], or [1, L] where aligned. A cell without a token says its sequence's first position: it then sees
        some key, so that no softmax over nothing puts a NaN where a gradient could find it."""
        if self.aligned:
            return self.positions[None, : self.lengths[0]]
        starts = torch.tensor(list(self.starts), device=self.device)
        columns = torch.arange(max(self.lengths), device=self.device)
        lengths = torch.tensor(list(self.lengths), device=self.device)
        return starts[:, None] + columns * (columns < lengths[:, None])

    @cached_property
    def runs(self) -> list[tuple[slice, "Batch"]]:
        """The batch in parts of neighbours with equal lengths and starts: where each is in the stream, and itself."""
        runs, tokens = [], 0
        for (length, start), group in groupby(zip(self.lengths, self.starts, strict=True)):
            count = len(list(group))
            part = Batch([length] * count, [start] * count, self.device)
            runs.append((slice(tokens, tokens + count * length), part))
            tokens += count * length
        return runs

    def first(self) -> Tensor:
        """[B]: the place in the stream of each sequence's first new token."""
        return self.last() - torch.tensor(list(self.lengths), device=self.device) + 1

    def last(self) -> Tensor:
        """[B]: the place in the stream of each sequence's last token."""
        return torch.tensor(list(self.lengths), device=self.device).cumsum(0) - 1

    def grid(self, x: Tensor) -> Tensor:
        """[T, ...] → [B, L, ...]; cells without a token are zero."""
        if self.equal:
            return x.view(len(self.lengths), self.lengths[0], *x.shape[1:])
        grid = x.new_zeros(len(self.lengths), max(self.lengths), *x.shape[1:])
        return grid.index_put((self.rows, self.columns), x)

    def stream(self, grid: Tensor) -> Tensor:
        """[B, L, ...] → [T, ...]."""
        if self.equal:
            return grid.reshape(-1, *grid.shape[2:])
        return grid[self.rows, self.columns]

    def split(self, x: Tensor) -> list[Tensor]:
        """[T, ...] → one [length, ...] a sequence."""
        return list(torch.split(x, list(self.lengths)))

    def once(self, key: Hashable, make: Callable[[], V]) -> V:
        """What all layers share in this step (rotary tables, masks, biases): made by the first that asks."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # type: ignore[return-value]
