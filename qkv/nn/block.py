"""The block: a mixer and an MLP, each beside a residual path, and cross-attention between them in a decoder that reads
an encoder. Where the norms stand is the only difference between the classes; each forward is its equation."""

from typing import Any

from torch import Tensor, nn

from qkv import spec
from qkv.errors import InputError
from qkv.nn.attention import CrossAttention
from qkv.nn.batch import Batch
from qkv.nn.cache import Kept, Storage, Stream
from qkv.nn.fixed import Both, Fixed, Memory
from qkv.nn.paged import Pool
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

    def new_storage(self, length: int | None, memory: Memory | None = None) -> Kept:
        """Where a cache keeps what the mixer must remember."""
        return self.mixer.new_storage(length)  # type: ignore[no-any-return]

    def new_paged(self, pool: Pool) -> Kept:
        """Where a cache of pages does."""
        return self.mixer.new_paged(pool)  # type: ignore[no-any-return]

    def passing(self, memory: Memory | None = None) -> Kept:
        """What serves in its place where nothing is to be kept."""
        return Stream()


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


class Crossing(PreNorm):
    """A block whose tokens also look at an encoder's states. Made without them, no storage of it is ready."""

    def __init__(self, block: spec.Block, dim: int) -> None:
        super().__init__(block, dim)
        assert block.cross is not None
        self.cross = CrossAttention(block.cross, dim)
        self.cross_norm = build(block.norm, dim)

    def new_storage(self, length: int | None, memory: Memory | None = None) -> Both:
        return Both(self.mixer.new_storage(length), self._remembered(memory))

    def new_paged(self, pool: Pool) -> Both:
        own = self.mixer.new_paged(pool, self.cross.kv_heads * self.cross.head_dim)
        return Both(own, self.cross.new_source(own))

    def passing(self, memory: Memory | None = None) -> Both:
        return Both(Stream(), self._remembered(memory))

    def _remembered(self, memory: Memory | None) -> Fixed:
        if memory is None:
            raise InputError("this decoder reads an encoder's states: give `memory`, which `encode` makes of ids")
        return self.cross.remember(memory.states, memory.batch)


class PreNormCrossing(Crossing):
    """x + f(norm(x)), for each of attention, cross-attention and MLP (T5, Pegasus)."""

    def forward(self, x: Tensor, batch: Batch, storage: Both) -> Tensor:  # type: ignore[override]
        x = x + self.dropout(self.mixer(self.mixer_norm(x), batch, storage.own))
        x = x + self.dropout(self.cross(self.cross_norm(x), batch, storage.fixed))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class PostNormCrossing(Crossing):
    """norm(x + f(x)), for each of attention, cross-attention and MLP (Vaswani et al. 2017, BART)."""

    def forward(self, x: Tensor, batch: Batch, storage: Both) -> Tensor:  # type: ignore[override]
        x = self.mixer_norm(x + self.dropout(self.mixer(x, batch, storage.own)))
        x = self.cross_norm(x + self.dropout(self.cross(x, batch, storage.fixed)))
        return self.mlp_norm(x + self.dropout(self.mlp(x)))  # type: ignore[no-any-return]


PLACES: dict[str, type[PreNorm]] = {"pre": PreNorm, "post": PostNorm, "sandwich": Sandwich, "parallel": Parallel}
CROSSING: dict[str, type[Crossing]] = {"pre": PreNormCrossing, "post": PostNormCrossing}


@implements(spec.Block)
def block(value: Any, dim: int) -> PreNorm:
    """The class for a block's place of norm, and for what it looks at."""
    return (PLACES if value.cross is None else CROSSING)[value.place](value, dim)
