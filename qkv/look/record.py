"""Recording what a model does inside, from outside: parts are wrapped while the tape runs.

with qkv.record(m, attention=True) as tape:
    m(ids)
tape.attention[layer]        # [heads, queries, keys], rows sum to one
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.nn.attend import Keys, attend, reference, weights
from qkv.nn.attention import Attention
from qkv.nn.batch import Batch
from qkv.nn.stack import Transformer


@dataclass
class Call:
    """One forward pass: for each layer, a [heads, queries, keys] for each sequence, keys by position from 0."""

    starts: list[int]
    attention: list[list[Tensor]] = field(default_factory=list)

    @property
    def ends(self) -> list[int]:
        return [s + x.shape[1] for s, x in zip(self.starts, self.attention[0], strict=True)]


@dataclass
class Tape:
    """What was recorded: every forward pass in `calls`."""

    calls: list[Call] = field(default_factory=list)

    @property
    def attention(self) -> list[Tensor] | list[list[Tensor]]:
        """Every layer's attention weights [heads, queries, keys]; for several sequences a list of them a layer.

        Calls that continue one another through a cache are joined: all their queries, keys filled up with zeros.
        InputError: nothing was recorded, or calls that don't belong together (see `calls`)."""
        if not self.calls:
            raise InputError("nothing was recorded: call the model inside the `with`, with attention=True")
        for before, after in zip(self.calls, self.calls[1:], strict=False):
            if before.ends != after.starts:
                raise InputError("the recorded calls are not one text read on; look at tape.calls one by one")
        layers, rows = range(len(self.calls[0].attention)), range(len(self.calls[0].starts))
        joined = [[_join([call.attention[layer][row] for call in self.calls]) for row in rows] for layer in layers]
        return [layer[0] for layer in joined] if len(rows) == 1 else joined


def _join(parts: list[Tensor]) -> Tensor:
    keys = max(p.shape[-1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, keys - p.shape[-1])) for p in parts], dim=1)


@contextmanager
def record(model: Transformer, *, attention: bool = True) -> Iterator[Tape]:
    """Record a model's forward passes while the `with` lasts. Weights are computed by the readable reference, kept in
    float32 on the CPU: heads · queries · keys · 4 bytes a layer."""
    tape = Tape()
    layers = [m for m in model.modules() if isinstance(m, Attention)] if attention else []
    call = Call([])

    def recording(q: Tensor, keys: Keys, batch: Batch, *, layer: Attention, **how: Any) -> Tensor:
        nonlocal call

        def path(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, **scores: Any) -> Tensor:
            p = weights(q, k, **scores)
            call.attention.append(_by_sequence(p, keys.positions(), batch))
            return reference(q, k, v, dropout=dropout, **scores)

        if layer is layers[0]:
            call = Call(list(batch.starts))
        out = attend(q, keys, batch, path=path, **how)
        if layer is layers[-1]:  # a call that is cut off before leaves nothing on the tape
            tape.calls.append(call)
        return out

    before = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = lambda *args, layer=layer, **how: recording(*args, layer=layer, **how)
        yield tape
    finally:
        for layer, attend_before in zip(layers, before, strict=True):
            layer.attend = attend_before


def _by_sequence(p: Tensor, positions: Tensor, batch: Batch) -> list[Tensor]:
    """[B, H, Q, K] with keys anywhere → [H, queries, end] a sequence, key j at position j."""
    out = []
    for row, (length, end) in enumerate(zip(batch.lengths, batch.ends, strict=True)):
        where = positions[row % positions.shape[0]]
        there = where >= 0
        sorted_ = p.new_zeros(p.shape[1], length, end, dtype=torch.float32)
        out.append(sorted_.index_add(2, where[there], p[row, :, :length, there].detach().float()).cpu())
    return out
