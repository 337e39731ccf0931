"""Attention: project, norm, position, attend, project out. Every head arrangement is this one class.

T  tokens of the stream    C  dim    H  query heads    G  key/value heads    D  head_dim
"""

from torch import Tensor, nn

from qkv import spec
from qkv.errors import ConfigError
from qkv.nn.attend import Seen, attend
from qkv.nn.batch import Batch
from qkv.nn.cache import Contiguous, Storage
from qkv.nn.fixed import Fixed, Source
from qkv.nn.linear import Linear, rounded_once
from qkv.nn.mask import Full, Mask
from qkv.nn.paged import Paged, PagedSource, Pool
from qkv.nn.parts import build, implements
from qkv.nn.position import Relative
from qkv.nn.ring import Ring


@implements(spec.Attention)
class Attention(nn.Module):
    """Multi-head (G = H), grouped-query and multi-query (G = 1) attention (Vaswani et al. 2017, §3.2)."""

    def __init__(self, attention: spec.Attention, dim: int) -> None:
        super().__init__()
        H, G, D = attention.heads, attention.kv_heads, attention.head_width(dim)
        self.spec, self.heads, self.kv_heads, self.head_dim = attention, H, G, D
        self.q = Linear(dim, H * D, bias=attention.qkv_bias)
        self.k = Linear(dim, G * D, bias=attention.qkv_bias)
        self.v = Linear(dim, G * D, bias=attention.qkv_bias)
        self.out = Linear(H * D, dim, bias=attention.out_bias)
        self.q_norm = build(attention.qk_norm, D) if attention.qk_norm else nn.Identity()
        self.k_norm = build(attention.qk_norm, D) if attention.qk_norm else nn.Identity()
        self.position: Relative = build(attention.position, H, D) if attention.position else Relative()
        self.mask: Mask = build(attention.mask)
        self.scale = attention.scale if attention.scale is not None else D**-0.5
        self.attend = attend

    def forward(self, x: Tensor, batch: Batch, storage: Storage) -> Tensor:
        """x [T, C] → [T, C]. `storage` keeps this step's keys and values and says which there are to see."""
        x = rounded_once(x)
        q_THD, (k_TGD, v_TGD) = self.queries(x), self.keys_values(x)
        q_THD, k_TGD = self.position.turn(q_THD, k_TGD, batch)
        return self.mix(q_THD, storage.extend(k_TGD, v_TGD, batch), batch)

    def queries(self, x: Tensor) -> Tensor:
        """[T, C] → [T, H, D]."""
        return self.q_norm(self.q(x).unflatten(-1, (self.heads, self.head_dim)))  # type: ignore[no-any-return]

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, C] → two [T, G, D]."""
        k_TGD = self.k_norm(self.k(x).unflatten(-1, (self.kv_heads, self.head_dim)))
        return k_TGD, self.v(x).unflatten(-1, (self.kv_heads, self.head_dim))

    def mix(self, q_THD: Tensor, keys: Seen, batch: Batch) -> Tensor:
        """What the queries find at the keys, projected out: [T, C]."""
        out_THD = self.attend(
            q_THD,
            keys,
            batch,
            mask=self.mask,
            position=self.position,
            scale=self.scale,
            softcap=self.spec.softcap,
            dropout=self.spec.dropout if self.training else 0.0,
        )
        return self.out(out_THD.flatten(-2))  # type: ignore[no-any-return]

    def new_storage(self, length: int | None) -> Storage:
        """Where a cache keeps this layer's keys: a ring where the mask forgets, else all of them."""
        self._by_steps()
        size = self.mask.keeps()
        if size is None or (length is not None and length <= size):
            return Contiguous(length)
        return Ring(size, at_once=length is not None)

    def new_paged(self, pool: Pool, at_least: int = 0) -> Paged:
        """Where a cache of pages keeps them: all of them, in front of a window too."""
        self._by_steps()
        return Paged(pool, self.kv_heads, self.head_dim, at_least)

    def _by_steps(self) -> None:
        if isinstance(self.mask, Full):
            raise ConfigError("a model that sees the whole sequence at once (mask Full) can't be fed step by step")


class CrossAttention(Attention):
    """Queries of one sequence over the keys and values of another (Vaswani et al. 2017, §3.2.3)."""

    def forward(self, x: Tensor, batch: Batch, fixed: Source) -> Tensor:  # type: ignore[override]
        """x [T, C] → [T, C]."""
        return self.mix(self.queries(x), fixed.look(batch), batch)

    def remember(self, states: Tensor, batch: Batch) -> Fixed:
        """The keys and values of the encoder's states [S, C]."""
        return Fixed(*self.keys_values(states), batch)

    def new_source(self, own: Paged) -> PagedSource:
        """Where a cache of pages keeps those, beside the decoder's own."""
        return PagedSource(own, self.kv_heads, self.head_dim, self.keys_values)
