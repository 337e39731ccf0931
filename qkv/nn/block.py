"""The block: a mixer and an MLP, each beside a residual path. Where the norms stand is the only difference between
the four classes; each forward is its equation."""

from typing import Any

from torch import Tensor, nn

from qkv import spec
from qkv.nn.batch import Batch
from qkv.nn.cache import Storage
from qkv.nn.parts import build, implements


class PreNorm(nn.Module):
    """x + f(norm(x)) (GPT-2, LLaMA)."""

    def __init__(self, block: spec.Block, dim: int) -> None:
        super().__init__()
        self.mixer = build(block.mixer, dim)
        self.mlp = build(block.mlp, dim)
        self.mixer_norm = build(block.norm, dim)
        self.mlp_norm = build(block.norm, dim)
        self.dropout = nn.Dropout(block.dropout) if block.dropout else nn.Identity()

    def forward(self, x: Tensor, batch: Batch, storage: Storage) -> Tensor:
        """x [T, C] → [T, C]."""
        x = x + self.dropout(self.mixer(self.mixer_norm(x), batch, storage))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def new_storage(self, length: int | None) -> Storage:
        """Where a cache keeps what the mixer must remember."""
        return self.mixer.new_storage(length)  # type: ignore[no-any-return]


class PostNorm(PreNorm):
    """norm(x + f(x)) (Vaswani et al. 2017, BERT)."""

    def forward(self, x: Tensor, batch: Batch, storage: Storage) -> Tensor:
        x = self.mixer_norm(x + self.dropout(self.mixer(x, batch, storage)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


class Sandwich(PreNorm):
    """x + norm(f(norm(x))) (CogView, arXiv 2105.13290; Gemma 2)."""

    def __init__(self, block: spec.Block, dim: int) -> None:
        super().__init__(block, dim)
        self.mixer_after = build(block.norm, dim)
        self.mlp_after = build(block.norm, dim)

    def forward(self, x: Tensor, batch: Batch, storage: Storage) -> Tensor:
        x = x + self.dropout(self.mixer_after(self.mixer(self.mixer_norm(x), batch, storage)))
        return x + self.dropout(self.mlp_after(self.mlp(self.mlp_norm(x))))  # type: ignore[no-any-return]


class Parallel(PreNorm):
    """x + f(norm₁(x)) + g(norm₂(x)) (GPT-NeoX, arXiv 2204.06745, §2.1)."""

    def forward(self, x: Tensor, batch: Batch, storage: Storage) -> Tensor:
        mixed = self.mixer(self.mixer_norm(x), batch, storage)
        return x + self.dropout(mixed) + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


PLACES: dict[str, type[PreNorm]] = {"pre": PreNorm, "post": PostNorm, "sandwich": Sandwich, "parallel": Parallel}


@implements(spec.Block)
def block(value: Any, dim: int) -> PreNorm:
    """The class for a block's place of norm."""
    return PLACES[value.place](value, dim)
