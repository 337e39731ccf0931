"""Embed: token ids to vectors."""

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import InputError
from qkv.nn.batch import Batch
from qkv.nn.linear import Embedding, Linear, fresh
from qkv.nn.parts import build, implements


@implements(spec.Embed)
class Embed(nn.Module):
    """A row of the table for each id: · scale, + segment, + position, norm, dropout, and to the model's width."""

    def __init__(self, embed: spec.Embed, vocab: int, dim: int) -> None:
        super().__init__()
        width = embed.width or dim
        self.tokens = Embedding(vocab, width)
        self.scale = embed.scale
        self.segment = Segments(embed.segments, width) if embed.segments else None
        self.position = build(embed.position, width) if embed.position else None
        self.norm = build(embed.norm, width) if embed.norm else nn.Identity()
        self.dropout = nn.Dropout(embed.dropout) if embed.dropout else nn.Identity()
        self.project = Linear(width, dim) if embed.width else nn.Identity()

    def forward(self, ids: Tensor, batch: Batch) -> Tensor:
        """ids [T] → [T, C]."""
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * torch.tensor(self.scale, dtype=x.dtype)  # rounded to the weights' precision, as Gemma was trained
        for added in (self.segment, self.position):
            if added is not None:
                x = x + added(batch).to(x.dtype)
        return self.project(self.dropout(self.norm(x)))  # type: ignore[no-any-return]


class Segments(nn.Module):
    """A trained vector for each kind of token (BERT, arXiv 1810.04805, §3.2)."""

    def __init__(self, kinds: int, dim: int) -> None:
        super().__init__()
        self.weight = fresh(kinds, dim)

    def forward(self, batch: Batch) -> Tensor:
        """[T, C], or [1, C] where all are of kind 0. InputError: a kind that isn't there."""
        if batch.segments is None:
            return self.weight[:1]
        if int(batch.segments.max()) >= len(self.weight) or int(batch.segments.min()) < 0:
            raise InputError(
                f"segments must be 0 to {len(self.weight) - 1}, got {sorted(set(batch.segments.tolist()))}"
            )
        return self.weight[batch.segments]
