"""Positions: what tells a token where it stands.

Two kinds, by where they act. Added ones (Learned, Sinusoidal) are called with positions [T] and give [T, C].
Relative ones act inside attention: `turn` acts on q and k, `bias` on their scores; a scheme overrides what it needs.

T  tokens of the stream    H  heads    D  head_dim    B, Q, K  sequences, queries and keys of a score table
"""

import math
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import InputError
from qkv.nn.batch import Batch
from qkv.nn.linear import fresh
from qkv.nn.parts import build, implements

# --- added to the token's vector ------------------------------------------------------------------------------------


@implements(spec.Learned)
class Learned(nn.Module):
    """One trained vector a position; `offset` rows come first that no token uses."""

    def __init__(self, position: spec.Learned, dim: int) -> None:
        super().__init__()
        self.length, self.offset = position.length, position.offset
        self.weight = fresh(position.length + position.offset, dim)

    def forward(self, batch: Batch) -> Tensor:
        """[T, C]. InputError: a sequence is longer than the table."""
        self.check(batch)
        return self.weight[batch.positions + self.offset]

    def check(self, batch: Batch) -> None:
        """InputError: a sequence is longer than the table."""
        if max(batch.ends) > self.length:
            raise InputError(
                f"a sequence of {max(batch.ends)} tokens is longer than this model's {self.length} learned positions"
            )


@implements(spec.Sinusoidal)
class Sinusoidal(nn.Module):
    """sin(pos / base^(2i/dim)) and cos of the same, in turn or in halves (Vaswani et al. 2017, §3.5)."""

    def __init__(self, position: spec.Sinusoidal, dim: int) -> None:
        super().__init__()
        self.base, self.halves, self.dim = position.base, position.halves, dim

    def forward(self, batch: Batch) -> Tensor:
        """[T, C], float32."""
        return self.table(batch.positions)

    def table(self, positions: Tensor) -> Tensor:
        """positions [T] → [T, C]."""
        steps = torch.arange(0, self.dim, 2, device=positions.device, dtype=torch.float64) / self.dim
        angles = positions[:, None] * self.base**-steps
        parts = (angles.sin(), angles.cos())
        table = torch.cat(parts, -1) if self.halves else torch.stack(parts, -1).flatten(-2)
        return table[:, : self.dim].float()


# --- inside attention -----------------------------------------------------------------------------------------------


class Relative(nn.Module):
    """A position scheme inside attention; this one does nothing."""

    @property
    def shared_as(self) -> Hashable:
        """Layers whose schemes answer the same here share one bias in a step."""
        return self

    def turn(self, q: Tensor, k: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """q [T, H, D] and k [T, G, D], turned by their positions."""
        return q, k

    def bias(self, batch: Batch, keys: Tensor) -> Tensor | None:
        """What to add to the scores of this step's queries over keys at positions [B, K]: [B, H, Q, K] or None."""
        return None


@implements(spec.Rotary)
class Rotary(Relative):
    """Pairs of q's and k's numbers turned by angle pos·frequency (RoFormer, arXiv 2104.09864, eq. 34)."""

    def __init__(self, position: spec.Rotary, heads: int, head_dim: int) -> None:
        super().__init__()
        self.spec, self.dims = position, position.dims or head_dim

    def turn(self, q: Tensor, k: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        cos, sin = batch.once((self.spec, self.dims, q.dtype), lambda: self.table(batch, q.dtype))
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin)

    def table(self, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin [T, 1, dims] of each token's angles; sin with the sign that it has in `rotate`."""
        frequencies, attention = self.frequencies(batch)
        angles = batch.positions[:, None].float() * frequencies
        cos, sin = angles.cos() * attention, angles.sin() * attention
        side = -1 if self.spec.interleaved else -2  # (a, b) next to each other, or in the two halves
        cos, sin = (torch.stack(pair, side).flatten(-2) for pair in ((cos, cos), (-sin, sin)))
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def frequencies(self, batch: Batch) -> tuple[Tensor, float]:
        """[dims/2], or [T, dims/2] where they depend on the sequence; and a factor for cos and sin."""
        scaling: Unscaled = build(self.spec.scaling) if self.spec.scaling else Unscaled()
        return scaling.frequencies(self.spec.base, self.dims, batch)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Each pair (a, b) of x's first `dims` numbers becomes (a·cos − b·sin, b·cos + a·sin)."""
        if self.dims < x.shape[-1]:
            return torch.cat((self.rotate(x[..., : self.dims], cos, sin), x[..., self.dims :]), -1)
        return x * cos + self.partner(x) * sin

    def partner(self, x: Tensor) -> Tensor:
        """The other number of each one's pair."""
        if self.spec.interleaved:
            return x.reshape(*x.shape[:-1], -1, 2).flip(-1).reshape(x.shape)
        return x.roll(self.dims // 2, -1)


@implements(spec.Alibi)
class Alibi(Relative):
    """slope_h · (key − query), slopes 2^(−8h/H) (arXiv 2108.12409, §3; its code for H not a power of two)."""

    def __init__(self, position: spec.Alibi, heads: int, head_dim: int) -> None:
        super().__init__()
        self.spec, self.heads = position, heads

    @property
    def shared_as(self) -> Hashable:
        return self.spec, self.heads

    @staticmethod
    def slopes(heads: int) -> list[float]:
        """One slope a head: a geometric series from 2^(−8/n) for the n = 2^k ≤ heads first ones, then every other
        term of the series for 2n."""
        n = 2 ** math.floor(math.log2(heads))
        first = [2 ** (-8 * (i + 1) / n) for i in range(n)]
        return first + [2 ** (-4 * (2 * i + 1) / n) for i in range(heads - n)]

    def bias(self, batch: Batch, keys: Tensor) -> Tensor:
        distance = keys[:, None, :] - batch.grid_positions[:, :, None]
        slopes = torch.tensor(self.slopes(self.heads), device=keys.device)
        return slopes[:, None, None] * distance[:, None].float()


@implements(spec.RelativeBias)
class RelativeBias(Relative):
    """A trained number for each head and bucket of distance: half the buckets exact, the rest logarithmic up to
    `distance` (T5, arXiv 1910.10683, §2.1)."""

    def __init__(self, position: spec.RelativeBias, heads: int, head_dim: int) -> None:
        super().__init__()
        self.spec = position
        self.weight = fresh(position.buckets, heads)

    def buckets(self, distance: Tensor) -> Tensor:
        """key − query → the bucket's number, as T5's code counts them."""
        count, offset = self.spec.buckets, torch.zeros_like(distance)
        if self.spec.both_ways:
            count //= 2
            offset, back = (distance > 0) * count, distance.abs()
        else:
            back = (-distance).clamp(min=0)
        exact = count // 2
        log = torch.log(back.clamp(min=1).float() / exact) / math.log(self.spec.distance / exact)
        far = (exact + (log * (count - exact)).long()).clamp(max=count - 1)
        return offset + torch.where(back < exact, back, far)

    def bias(self, batch: Batch, keys: Tensor) -> Tensor:
        distance = keys[:, None, :] - batch.grid_positions[:, :, None]
        return self.weight[self.buckets(distance)].permute(0, 3, 1, 2)


# --- rotary frequencies beyond the trained length -------------------------------------------------------------------


class Unscaled:
    """base^(−2i/dims): the frequencies as trained."""

    def frequencies(self, base: float, dims: int, batch: Batch) -> tuple[Tensor, float]:
        steps = torch.arange(0, dims, 2, device=batch.device).float() / dims
        return 1.0 / (base**steps), 1.0


@implements(spec.LinearScaling)
class LinearScaling(Unscaled):
    """Every frequency / factor (arXiv 2306.15595)."""

    def __init__(self, scaling: spec.LinearScaling) -> None:
        self.spec = scaling

    def frequencies(self, base: float, dims: int, batch: Batch) -> tuple[Tensor, float]:
        plain, attention = super().frequencies(base, dims, batch)
        return plain / self.spec.factor, attention


def _ntk(stretch: float, dims: int) -> float:
    """What the base is multiplied by. (A single pair turns by 1 a position, whatever the base.)"""
    return float(stretch ** (dims / max(dims - 2, 1)))


@implements(spec.NTKScaling)
class NTKScaling(Unscaled):
    """base · factor^(d/(d−2)) (bloc97 2023)."""

    def __init__(self, scaling: spec.NTKScaling) -> None:
        self.spec = scaling

    def frequencies(self, base: float, dims: int, batch: Batch) -> tuple[Tensor, float]:
        return super().frequencies(base * _ntk(self.spec.factor, dims), dims, batch)


@implements(spec.DynamicNTKScaling)
class DynamicNTKScaling(Unscaled):
    """base · (factor·n/length − (factor − 1))^(d/(d−2)) for a sequence of n > length tokens, each by its own n."""

    def __init__(self, scaling: spec.DynamicNTKScaling) -> None:
        self.spec = scaling

    def frequencies(self, base: float, dims: int, batch: Batch) -> tuple[Tensor, float]:
        factor, length = self.spec.factor, self.spec.length
        for start, end in zip(batch.starts, batch.ends, strict=True):
            if start > 0 and end > length:
                raise InputError(
                    f"this model's dynamic NTK scaling changes every angle past {length} tokens, so keys cached before"
                    f" no longer fit (the sequence has {end}): keep within {length}, go without a cache, or load with"
                    " a fixed scaling (linear, NTK, YaRN)"
                )
        stretch = [factor * max(end, length) / length - (factor - 1) for end in batch.ends]
        bases = torch.tensor([base * _ntk(s, dims) for s in stretch], device=batch.device)
        steps = torch.arange(0, dims, 2, device=batch.device).float() / dims
        return (1.0 / bases[:, None] ** steps)[batch.rows], 1.0


@implements(spec.Yarn)
class Yarn(Unscaled):
    """Frequencies that turn less than `slow` times within `length` are interpolated, those that turn more than `fast`
    times kept, with a ramp between (arXiv 2309.00071, §3.2)."""

    def __init__(self, scaling: spec.Yarn) -> None:
        self.spec = scaling

    def frequencies(self, base: float, dims: int, batch: Batch) -> tuple[Tensor, float]:
        plain, _ = super().frequencies(base, dims, batch)
        low, high = (self.dimension(turns, base, dims) for turns in (self.spec.fast, self.spec.slow))
        if self.spec.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        steps = torch.arange(dims // 2, device=batch.device).float()
        kept = 1 - ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
        factor = self.spec.factor
        attention = self.spec.attention or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return plain * kept + plain / factor * (1 - kept), attention

    def dimension(self, turns: float, base: float, dims: int) -> float:
        """The (fractional) pair whose angle turns that often within the trained length."""
        return dims * math.log(self.spec.length / (turns * 2 * math.pi)) / (2 * math.log(base))


@implements(spec.Llama3Scaling)
class Llama3Scaling(Unscaled):
    """Long wavelengths / factor, short ones kept, smoothed between (Llama 3.1's reference code)."""

    def __init__(self, scaling: spec.Llama3Scaling) -> None:
        self.spec = scaling

    def frequencies(self, base: float, dims: int, batch: Batch) -> tuple[Tensor, float]:
        plain, attention = super().frequencies(base, dims, batch)
        low, high = self.spec.low, self.spec.high
        turns = self.spec.length * plain / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * kept + plain / self.spec.factor * (1 - kept), attention
