"""Embed: token ids to vectors."""

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.nn.batch import Batch
from qkv.nn.linear import Embedding
from qkv.nn.parts import build, implements


@implements(spec.Embed)
class Embed(nn.Module):
    """A row of the table for each id: · scale, + position, norm, dropout."""

    def __init__(self, embed: spec.Embed, vocab: int, dim: int) -> None:
        super().__init__()
        self.tokens = Embedding(vocab, dim)
        self.scale = embed.scale
        self.position = build(embed.position, dim) if embed.position else None
        self.norm = build(embed.norm, dim) if embed.norm else nn.Identity()
        self.dropout = nn.Dropout(embed.dropout) if embed.dropout else nn.Identity()

    def forward(self, ids: Tensor, batch: Batch) -> Tensor:
        """ids [T] → [T, C]."""
        x = self.tokens(ids)
        if self.scale != 1.0:
            x = x * torch.tensor(self.scale, dtype=x.dtype)  # rounded to the weights' precision, as Gemma was trained
        if self.position is not None:
            x = x + self.position(batch).to(x.dtype)
        return self.dropout(self.norm(x))  # type: ignore[no-any-return]
