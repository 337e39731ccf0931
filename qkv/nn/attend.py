"""attend: the one place where scores are made.

B  sequences    Q  queries    K  keys    H  query heads    G  key/value heads (H a multiple of G)    D  head_dim

`reference` is the equation. `sdpa` is torch's kernel behind the same signature, `products` the same with a gradient of
our own; tests hold both to the reference.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
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


TILE = 2**21  # scores that `products` makes at a time: 4 MB in bfloat16

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
    causal = plainly == "lower triangle" and allowed is None
    path = path or (quickest(q_BHQD, keys.k, bias, dropout) if softcap is None else reference)
    out = path(
        q_BHQD, keys.k, keys.v, allowed=allowed, bias=bias, causal=causal, scale=scale, softcap=softcap, dropout=dropout
    )
    return batch.stream(out.transpose(1, 2))


def quickest(q: Tensor, k: Tensor, bias: Tensor | None, dropout: float) -> Path:
    """The path for these queries, where no soft cap is asked for."""
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    slow = learns and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    return products if slow and bias is None and not dropout else sdpa


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


def products(
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
    """`sdpa`, with a gradient of plain products of matrices: torch's own takes twice as long on a CPU in
    bfloat16 (100 ms and 45, of 96 heads with 256 keys, on one core with AMX), and with fewer keys up to nine times (20
    ms and 2.2, of 48 with 64). Scores are made again for it, a tile at a time."""
    assert (softcap, bias, dropout) == (None, None, 0.0), "`products` has neither soft cap, bias nor dropout"
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
    return cast(Tensor, cast(Any, _Products).apply(q, k, v, allowed, causal, scale))


class _Products(torch.autograd.Function):
    """q, k, v [B, H, Q or K, D], allowed [B or 1, 1, Q, K]. With p the weights and dp = do vᵀ: dv = pᵀ do,
    ds = p ⊙ (dp − Σ_k p ⊙ dp), dq = ds k, dk = dsᵀ q."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, allowed)
        ctx.causal, ctx.scale = causal, scale
        return sdpa(q, k, v, allowed=allowed, causal=causal, scale=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed = ctx.saved_tensors
        B, H, Q, D = q.shape
        K = k.shape[2]
        q, k, v, do = (x.reshape(B * H, -1, D) for x in (q * ctx.scale, k, v, upstream[0].to(q.dtype)))
        hidden = _hidden(allowed, ctx.causal, q, (B, H, Q, K))
        each = max(1, TILE // (Q * K))
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for start in range(0, B * H, each):
            at = slice(start, start + each)
            scores = torch.bmm(q[at], k[at].mT)
            if hidden is not None:
                scores += hidden[at] if len(hidden) > 1 else hidden
            p = torch.softmax(scores, -1)
            ds = torch._softmax_backward_data(torch.bmm(do[at], v[at].mT), p, -1, p.dtype)
            torch.bmm(p.mT, do[at], out=dv[at])
            torch.bmm(ds, k[at], out=dq[at])
            torch.bmm(ds.mT, q[at], out=dk[at])
        dq *= ctx.scale
        return dq.view(B, H, Q, D), dk.view(B, H, K, D), dv.view(B, H, K, D), None, None, None


def _hidden(allowed: Tensor | None, causal: bool, q: Tensor, shape: tuple[int, int, int, int]) -> Tensor | None:
    """−∞ where no query may look, else 0: [1 or B·H, Q, K], or None."""
    B, H, Q, K = shape
    if causal:
        return q.new_full((1, Q, K), float("-inf")).triu_(1)
    if allowed is None:
        return None
    table = q.new_zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
    return table[:, 0] if len(table) == 1 else table.expand(B, H, Q, K).reshape(B * H, Q, K)
