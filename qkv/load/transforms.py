"""Named transforms between a checkpoint's tensors and ours. Each is a pair: on the way in, and its exact inverse."""

from collections.abc import Callable

import torch
from torch import Tensor

from qkv import spec

Transform = Callable[[Tensor, spec.Attention, int], Tensor]  # tensor, the attention it belongs to, its head_dim


def _transpose(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x.T.contiguous()


def _by_group(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """[group: q … q k v, …] → [all q, all k, all v]: GPT-NeoX, BLOOM and GPT-BigCode keep what attends together in one
    place, a group being the queries that share a key."""
    groups = torch.unflatten(x, 0, (attention.kv_heads, -1, head_dim))
    return torch.cat([part.flatten(0, 2) for part in (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])])


def _to_by_group(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    G, H = attention.kv_heads, attention.heads
    parts = torch.split(x, [H * head_dim, G * head_dim, G * head_dim])
    return torch.cat([torch.unflatten(part, 0, (G, -1, head_dim)) for part in parts], dim=1).flatten(0, 2)


def _from_ggml_rotary(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """Rotary pairs (2i, 2i+1), as ggml stores LLaMA's q and k, → (i, i + D/2), as Hugging Face does."""
    return torch.unflatten(x, 0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _to_ggml_rotary(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return torch.unflatten(x, 0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _minus_one(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """Gemma's norms: ggml stores 1 + w."""
    return x - 1


def _plus_one(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x + 1


def _from_row(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    """BART keeps its head's bias as a matrix of one row."""
    return x.squeeze(0)


def _to_row(x: Tensor, attention: spec.Attention, head_dim: int) -> Tensor:
    return x.unsqueeze(0)


TURN = "transpose"  # of a matrix that a family stores as [inputs, outputs]

TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    TURN: (_transpose, _transpose),
    "by_group": (_by_group, _to_by_group),
    "ggml_rotary": (_from_ggml_rotary, _to_ggml_rotary),
    "minus_one": (_minus_one, _plus_one),
    "row": (_from_row, _to_row),
}

BY_ROW = frozenset({"by_group", "ggml_rotary"})  # they move whole rows, whatever a row holds


def take(x: Tensor, via: tuple[str, ...], sizes: list[int], attention: spec.Attention, head_dim: int) -> list[Tensor]:
    """A checkpoint's tensor → ours: the transforms in order, then cut into rows of these sizes."""
    for name in via:
        x = TRANSFORMS[name][0](x, attention, head_dim)
    return [x] if len(sizes) == 1 else list(torch.split(x, sizes))


def give(parts: list[Tensor], via: tuple[str, ...], attention: spec.Attention, head_dim: int) -> Tensor:
    """Ours → a checkpoint's tensor: `take` undone."""
    x = parts[0] if len(parts) == 1 else torch.cat(parts)
    for name in reversed(via):
        x = TRANSFORMS[name][1](x, attention, head_dim)
    return x.contiguous()
