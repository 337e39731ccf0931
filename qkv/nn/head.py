"""Heads: what is read off the last states, and the loss that trains it.

T  tokens of the stream    B  sequences    C  dim    V  vocabulary    E  width of the table (C, unless factorised)

Every head is called with states [T, C], their batch and the token table [V, E].
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkv import spec
from qkv.nn.batch import Batch
from qkv.nn.linear import Linear, fresh
from qkv.nn.mlp import ACTIVATIONS
from qkv.nn.parts import build, implements

IGNORED = -100  # the label of a token that has none


class Product(NamedTuple):
    """A head's last product, over the vocabulary: states [N, E] by a matrix [V, E], plus a bias [V], capped.

    Whoever wants no more of it than a loss (`qkv.train.loss`) never needs all logits at once."""

    states: Tensor
    matrix: Tensor
    bias: Tensor | None
    softcap: float | None = None

    def logits(self) -> Tensor:
        """[N, V]."""
        logits = F.linear(self.states, self.matrix, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class PerToken(nn.Module):
    """A head with one answer a token."""

    def grid(self, out: Tensor, batch: Batch) -> Any:
        """[T, …] of sequences of one length → [B, L, …]."""
        return out.view(len(batch.lengths), -1, *out.shape[1:])

    def rows(self, out: Tensor, batch: Batch) -> Any:
        """[T, …] → one [length, …] a sequence."""
        return batch.split(out)

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        """The mean cross-entropy of scores [T, X] against labels [T]; IGNORED ones don't count."""
        return F.cross_entropy(out.float(), labels, ignore_index=IGNORED)


class PerSequence(nn.Module):
    """A head with one answer a sequence."""

    def grid(self, out: Tensor, batch: Batch) -> Any:
        """[B, …], as it is."""
        return out

    def rows(self, out: Tensor, batch: Batch) -> Any:
        """[B, …] → one […] a sequence."""
        return list(out.unbind(0))


# --- one answer a token ---------------------------------------------------------------------------------------------


@implements(spec.LMHead)
class LMHead(PerToken):
    """Logits over the vocabulary, with the embedding's matrix (tied, arXiv 1608.05859) or one of its own."""

    def __init__(self, head: spec.LMHead, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.softcap, self.scale = head.softcap, head.scale
        self.weight = None if head.tied else fresh(vocab, dim)
        self.bias = nn.Parameter(torch.zeros(vocab)) if head.bias else None

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[T, V]."""
        return self.logits(x, table)

    def logits(self, x: Tensor, table: Tensor) -> Tensor:
        """Any states [N, C] → [N, V]."""
        return self.product(x, table).logits()

    def product(self, x: Tensor, table: Tensor) -> Product:
        """Any states [N, C], before their logits."""
        x = x * self.scale if self.scale != 1.0 else x
        return Product(x, table if self.weight is None else self.weight, self.bias, self.softcap)


@implements(spec.MaskedLM)
class MaskedLM(PerToken):
    """Logits of what is masked: norm(σ(W x)), then the table or a matrix of its own, and a bias."""

    def __init__(self, head: spec.MaskedLM, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.dense = Linear(dim, width)
        self.activation = ACTIVATIONS[head.activation]
        self.norm = build(head.norm, width)
        self.weight = None if head.tied else fresh(vocab, width)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[T, V]."""
        return self.product(x, table).logits()

    def product(self, x: Tensor, table: Tensor) -> Product:
        """Any states [N, C], before their logits: norm(σ(W x))."""
        x = self.norm(self.activation(self.dense(x)))
        return Product(x, table if self.weight is None else self.weight, self.bias)


@implements(spec.Tag)
class Tag(PerToken):
    """A score for each label."""

    def __init__(self, head: spec.Tag, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(head.dropout) if head.dropout else nn.Identity()
        self.out = Linear(dim, len(head.labels), bias=head.bias)

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[T, labels]."""
        return self.out(self.dropout(x))  # type: ignore[no-any-return]


@implements(spec.Span)
class Span(PerToken):
    """The scores of being an answer's first and its last token."""

    def __init__(self, head: spec.Span, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(head.dropout) if head.dropout else nn.Identity()
        self.out = Linear(dim, 2)

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[T, 2]."""
        return self.out(self.dropout(x))  # type: ignore[no-any-return]

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        """`out` [L, 2] of one sequence, `labels` [2] its answer's first and last token: the mean of both losses."""
        return F.cross_entropy(out.float().T, labels)


@implements(spec.Replaced)
class Replaced(PerToken):
    """Was the token replaced? w·σ(W x) + b."""

    def __init__(self, head: spec.Replaced, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.dense = Linear(dim, dim)
        self.activation = ACTIVATIONS[head.activation]
        self.out = Linear(dim, 1)

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[T]."""
        return self.out(self.activation(self.dense(x)))[:, 0]  # type: ignore[no-any-return]

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of scores [T] against 0 or 1."""
        return F.binary_cross_entropy_with_logits(out.float(), labels.float())


@implements(spec.States)
class States(PerToken):
    """The states themselves, and the layer that a checkpoint has for its first token's."""

    def __init__(self, head: spec.States, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.pooler = Pooler(head.pooler, dim) if head.pooler else None

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[T, C]."""
        return x


class Pooler(nn.Module):
    """σ(W x) of the first token's state: BERT's pooled output [B, C]."""

    def __init__(self, activation: spec.Activation, dim: int) -> None:
        super().__init__()
        self.dense = Linear(dim, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.activation(self.dense(x[batch.first()]))


# --- one answer a sequence ------------------------------------------------------------------------------------------


@implements(spec.Pool)
class Pool(PerSequence):
    """One vector a sequence (Sentence-BERT, arXiv 1908.10084, §3)."""

    def __init__(self, head: spec.Pool, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.how, self.normalize = head.how, head.normalize
        self.pooler = Pooler(head.pooler, dim) if head.pooler else None

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[B, C]."""
        pooled = POOLINGS[self.how](x, batch)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def _mean(x: Tensor, batch: Batch) -> Tensor:
    """Summed in at least float32, as many as there are."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    lengths = torch.tensor(list(batch.lengths), device=x.device)
    return torch.segment_reduce(exact, "mean", lengths=lengths, axis=0).to(x.dtype)


def _max(x: Tensor, batch: Batch) -> Tensor:
    return torch.stack([row.amax(0) for row in batch.split(x)])


POOLINGS: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "cls": lambda x, batch: x[batch.first()],
    "last": lambda x, batch: x[batch.last()],
    "mean": _mean,
    "max": _max,
}


@implements(spec.Classify)
class Classify(PerSequence):
    """A score for each label from one token's state."""

    def __init__(self, head: spec.Classify, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.pick, self.problem = PICKED[head.pick], head.problem
        self.dropout = nn.Dropout(head.dropout) if head.dropout else nn.Identity()
        self.hidden = Linear(dim, dim) if head.hidden else nn.Identity()
        self.activation = ACTIVATIONS[head.hidden] if head.hidden else nn.Identity()
        self.out = Linear(dim, len(head.labels), bias=head.bias)

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> Tensor:
        """[B, labels]."""
        x = self.activation(self.hidden(x[self.pick(batch)]))
        return self.out(self.dropout(x))  # type: ignore[no-any-return]

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        """Of scores [B, labels]: cross-entropy against [B]; binary cross-entropy or squared error against [B, n]."""
        return CRITERIA[self.problem](out.float(), labels)


PICKED = {"first": Batch.first, "last": Batch.last}
CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "single": F.cross_entropy,
    "multi": lambda out, labels: F.binary_cross_entropy_with_logits(out, labels.float()),
    "regression": lambda out, labels: F.mse_loss(out, labels.float().view_as(out)),
}


# --- several --------------------------------------------------------------------------------------------------------


@implements(spec.Heads)
class Heads(nn.Module):
    """Several heads on the same states: a tuple of what each gives."""

    def __init__(self, head: spec.Heads, vocab: int, dim: int, width: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(build(one, vocab, dim, width) for one in head.heads)

    def forward(self, x: Tensor, batch: Batch, table: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(x, batch, table) for head in self.each)

    def grid(self, out: tuple[Tensor, ...], batch: Batch) -> Any:
        """Each one's."""
        return tuple(cast(PerToken, head).grid(one, batch) for head, one in zip(self.each, out, strict=True))

    def rows(self, out: tuple[Tensor, ...], batch: Batch) -> Any:
        """Each one's lists."""
        return tuple(cast(PerToken, head).rows(one, batch) for head, one in zip(self.each, out, strict=True))

    def loss(self, out: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        """The sum of all losses."""
        losses = [cast(PerToken, h).loss(o, y) for h, o, y in zip(self.each, out, labels, strict=True)]
        return torch.stack(losses).sum()
