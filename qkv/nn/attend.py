"""attend: the one place where scores are made.

B  sequences    Q  queries    K  keys    H  query heads    G  key/value heads (H a multiple of G)    D  head_dim

`reference` is the equation. `sdpa` is torch's kernel behind the same signature; a test holds it to the reference.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qkv.nn.batch import Batch
from qkv.nn.mask import Mask
from qkv.nn.position import Relative

Path = Callable[..., Tensor]  # reference's signature


@dataclass
class Keys:
    """Keys and values [B, G, K, D] that a step's queries may look at, and where each stands in its sequence.

    `layout` names the storage's arrangement: layers with the same one share masks and biases. `in_order`: key j of
    every sequence stands at position j, and every sequence has them all, so that no position needs a look."""

    k: Tensor
    v: Tensor
    positions: Callable[[], Tensor]  # [B or 1, K]; −1: no key there
    layout: Hashable
    in_order: bool


@dataclass
class Run:
    """Some of a step's sequences, neighbours in the stream: where their tokens are, their keys, and they as a batch."""

    tokens: slice
    keys: Keys
    batch: Batch


Seen = Keys | list[Run]  # what a step's queries may look at: of all sequences in one, or of some at a time


def by_run(one: Callable[[Tensor, Keys, Batch], Tensor], q: Tensor, runs: list[Run]) -> Tensor:
    """`one` for each run: q [T, H, D] → [T, H, D]."""
    return torch.cat([one(q[run.tokens], run.keys, run.batch) for run in runs])


def attend(
    q: Tensor,
    keys: Seen,
    batch: Batch,
    *,
    mask: Mask,
    position: Relative,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    path: "Path | None" = None,
) -> Tensor:
    """softmax(q kᵀ · scale + bias) v over the keys that the mask allows: q [T, H, D] → [T, H, D]."""
    how: dict[str, Any] = {"mask": mask, "position": position, "scale": scale, "softcap": softcap, "dropout": dropout}
    if isinstance(keys, list):
        return by_run(partial(attend, path=path, **how), q, keys)
    q_BHQD = batch.grid(q).transpose(1, 2)
    plainly = mask.plainly(batch.starts[0], batch.lengths[0]) if keys.in_order else None
    bias = batch.once(("bias", position.shared_as, keys.layout), lambda: position.bias(batch, keys.positions()))
    allowed = None
    if plainly is None or (plainly == "lower triangle" and (bias is not None or softcap is not None)):
        allowed = batch.once(("mask", mask.spec, keys.layout), lambda: allowed_table(mask, batch, keys.positions()))
    path = path or (sdpa if softcap is None else reference)
    causal = plainly == "lower triangle" and allowed is None
    out = path(
        q_BHQD, keys.k, keys.v, allowed=allowed, bias=bias, causal=causal, scale=scale, softcap=softcap, dropout=dropout
    )
    return batch.stream(out.transpose(1, 2))


def allowed_table(mask: Mask, batch: Batch, positions: Tensor) -> Tensor:
    """bool [B or 1, 1, Q, K]: the mask's rule, where there is a key at all."""
    queries, keys = batch.grid_positions[:, :, None], positions[:, None, :]
    return (mask.allows(queries, keys) & (keys >= 0))[:, None]


def weights(
    q: Tensor,
    k: Tensor,
    *,
    allowed: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """The attention weights [B, H, Q, K], softmax in at least float32. A query that sees no key has weights of zero."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    exact = torch.promote_types(q.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=exact).nan_to_num(0.0).to(q.dtype)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The equation. q [B, H, Q, D], k and v [B, G, K, D], allowed [B, 1, Q, K], bias [B, H, Q, K] → [B, H, Q, D]."""
    p = weights(q, k, allowed=allowed, bias=bias, causal=causal, scale=scale, softcap=softcap)
    p = F.dropout(p, dropout) if dropout else p
    return p @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """torch's scaled_dot_product_attention, same shapes. One query: the heads of a group become its queries, as no
    mask tells them apart (torch's own grouping takes several times as long there)."""
    assert softcap is None, "torch's kernel has no soft cap"
    B, H, Q, D = q.shape
    G = k.shape[1]
    table = allowed
    if bias is not None:
        bias = bias.to(q.dtype)
        table = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
    if Q == 1 and G < H:
        q = q.reshape(B, G, H // G, D)
        if table is not None and table.shape[1] == H:
            table = table.reshape(table.shape[0], G, H // G, -1)
        out = F.scaled_dot_product_attention(q, k, v, table, dropout, False, scale=scale)
        return out.reshape(B, H, 1, D)
    return F.scaled_dot_product_attention(q, k, v, table, dropout, causal, scale=scale, enable_gqa=G < H)
