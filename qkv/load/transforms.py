"""Named transforms between a checkpoint's tensors and ours. Each is a pair: on the way in, and its exact inverse."""

from collections.abc import Callable

import torch
from torch import Tensor

from qkv import spec

Transform = Callable[[Tensor, spec.Attention, int], Tensor]  # tensor, the attention it belongs to, its head_dim


def _transpose(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x.T.contiguous()


def _by_head(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """[head: q k v, …] → [q, k, v]: all heads' queries first (GPT-NeoX and BLOOM keep each head's three together)."""
    return x.unflatten(0, (-1, 3, head_dim)).transpose(0, 1).flatten(0, 2)


def _to_by_head(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x.unflatten(0, (3, -1, head_dim)).transpose(0, 1).flatten(0, 2)


def _from_ggml_rotary(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """Rotary pairs (2i, 2i+1), as ggml stores LLaMA's q and k, → (i, i + D/2), as Hugging Face does."""
    return x.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _to_ggml_rotary(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _minus_one(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """Gemma's norms: ggml stores 1 + w."""
    return x - 1


def _plus_one(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x + 1


TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "transpose": (_transpose, _transpose),
    "by_head": (_by_head, _to_by_head),
    "ggml_rotary": (_from_ggml_rotary, _to_ggml_rotary),
    "minus_one": (_minus_one, _plus_one),
}


def take(x: Tensor, via: tuple[str, ...], sizes: list[int], attention: spec.Attention, head_dim: int) -> list[Tensor]:
    """A checkpoint's tensor → ours: the transforms in order, then cut into rows of these sizes."""
    for name in via:
        x = TRANSFORMS[name][0](x, attention, head_dim)
    return [x] if len(sizes) == 1 else list(x.split(sizes))


def give(parts: list[Tensor], via: tuple[str, ...], attention: spec.Attention, head_dim: int) -> Tensor:
    """Ours → a checkpoint's tensor: `take` undone."""
    x = parts[0] if len(parts) == 1 else torch.cat(parts)
    for name in reversed(via):
        x = TRANSFORMS[name][1](x, attention, head_dim)
    return x.contiguous()
