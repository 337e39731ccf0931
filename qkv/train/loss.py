"""The loss of many tokens over a large vocabulary, without all their logits in memory at once.

The sum over tokens of −Σ_k q_k log p_k, where q is y(1−ε) + ε/K (label smoothing, arXiv 1512.00567, §7). It is computed
a chunk of tokens at a time, the gradient in the same pass, while the chunk's logits are near: they are never stored and
never computed again.
"""

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from qkv.nn.head import IGNORED, Product
from qkv.nn.stack import Transformer
from qkv.train.objective import Feed

CHUNK = 2**22  # logits at a time: 16 MB
ROWS = 128  # tokens at a time at least: each chunk adds once to the whole gradient of the matrix
PLAIN = 2**18  # logits up to which autograd's own way costs less than the bookkeeping here


class Vocabulary(Protocol):
    """A head whose last product is over the vocabulary: LMHead, MaskedLM."""

    def product(self, x: Tensor, table: Tensor) -> Product:
        """States [N, C] as the last product takes them."""


def of_feed(model: Transformer, feed: Feed, smoothing: float = 0.0) -> Tensor:
    """The summed loss of a feed whose labels are one a token of what the head reads: float32 []."""
    memory = None if feed.target is None else model.encode(feed.ids, segments=feed.segments)
    read, segments = (feed.ids, feed.segments) if feed.target is None else (feed.target, None)
    stream, batch = model.batch(read, segments=segments)
    states = model.states(stream, batch, memory=memory)
    return of_head(cast(Vocabulary, model.head), states, model.table, feed.labels, smoothing)


def of_head(head: Vocabulary, states: Tensor, table: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The summed loss, float32 [], of states [T, C] and labels [T]; IGNORED ones cost nothing."""
    labels = labels.to(states.device)
    chosen = (labels != IGNORED).nonzero()[:, 0]
    if len(chosen) < len(labels):
        states, labels = states[chosen], labels[chosen]
    return summed(head.product(states, table), labels, smoothing)


def summed(product: Product, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of the losses of labels [N], float32 []: that of `F.cross_entropy(product.logits().float(), labels,
    label_smoothing=smoothing, reduction="sum")` with its gradients, once. In autocast the products are in its dtype."""
    if len(labels) * len(product.matrix) <= PLAIN:
        return F.cross_entropy(product.logits().float(), labels, label_smoothing=smoothing, reduction="sum")
    kind = product.states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else product.states.dtype
    return cast(Tensor, cast(Any, _Summed).apply(*product, labels, smoothing, dtype, torch.is_grad_enabled()))


class _Summed(torch.autograd.Function):
    """Its gradients are computed with it, and wait for the one number that they are multiplied by."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        labels: Tensor,
        smoothing: float,
        dtype: torch.dtype,
        learns: bool,
    ) -> Tensor:
        given = (states, matrix, bias)
        grads = [
            torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
            if x is not None and learns and need
            else None
            for x, need in zip(given, ctx.needs_input_grad, strict=False)
        ]
        rows = max(ROWS, CHUNK // len(matrix))
        weight = matrix.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(labels), rows):
                part = slice(start, start + rows)
                x = states[part].to(dtype)
                logits = Product(x, weight, None if bias is None else bias.to(dtype), softcap).logits().float()
                slope = None if softcap is None else 1 - (logits / softcap).square_()
                logs = torch.log_softmax(logits, -1)
                total += _loss(logs, labels[part], smoothing)
                if any(grad is not None for grad in grads):
                    delta = _gradient(logs, labels[part], smoothing)
                    _collect(delta if slope is None else delta.mul_(slope), x, weight, grads, part)
        ctx.grads, ctx.dtypes = grads, [None if x is None else x.dtype for x in given]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # given away, not copied
        if grads is None:
            raise RuntimeError("the gradients of this loss were taken before: compute it again")
        found = zip(grads, ctx.dtypes, strict=True)
        return (*(None if grad is None else grad.mul_(upstream[0]).to(dtype) for grad, dtype in found), *[None] * 5)


def _loss(logs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Log-probabilities [n, V] → the summed loss."""
    loss = -(1 - smoothing) * logs.gather(1, labels[:, None]).sum()
    return loss - smoothing * logs.mean(-1).sum() if smoothing else loss


def _gradient(logs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The loss by the logits: p − q. In the place of `logs`."""
    delta = logs.exp_()
    if smoothing:
        delta -= smoothing / delta.shape[1]
    right = torch.full((len(labels), 1), smoothing - 1, dtype=delta.dtype, device=delta.device)
    return delta.scatter_add_(1, labels[:, None], right)


def _collect(delta: Tensor, x: Tensor, weight: Tensor, grads: list[Tensor | None], part: slice) -> None:
    """A chunk's share of the gradients of states, matrix and bias."""
    states, matrix, bias = grads
    if bias is not None:
        bias += delta.sum(0)
    delta = delta.to(weight.dtype)
    if states is not None:
        states[part] = delta @ weight
    if matrix is not None and matrix.dtype == delta.dtype:
        matrix.addmm_(delta.T, x)
    elif matrix is not None:
        matrix += delta.T @ x
