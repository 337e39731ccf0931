"""Recording what a model does inside, from outside: parts are wrapped while the tape runs.

with qkv.record(m, attention=True) as tape:
    m(ids)
tape.attention[layer]        # [heads, queries, keys], rows sum to one

Of an encoder–decoder `tape.attention` is the decoder's own, `tape.cross` what it looks at in the source, and
`tape.encoder` the encoder's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.nn.attend import Keys, Seen, attend, by_run, reference, weights
from qkv.nn.attention import Attention, CrossAttention
from qkv.nn.batch import Batch
from qkv.nn.stack import Stack, Transformer

Weights = list[list[Tensor]]  # for each layer a [heads, queries, keys] for each sequence, keys by position from 0


@dataclass
class Call:
    """One pass through a stack."""

    starts: list[int]
    ends: list[int]
    attention: Weights = field(default_factory=list)
    cross: Weights = field(default_factory=list)


@dataclass
class Tape:
    """What was recorded: in `calls` every pass through the stack that the head reads, in `encoded` every pass through
    an encoder before it."""

    calls: list[Call] = field(default_factory=list)
    encoded: list[Call] = field(default_factory=list)

    @property
    def attention(self) -> list[Tensor] | Weights:
        """Every layer's attention weights [heads, queries, keys]; for several sequences a list of them a layer.

        Calls that continue one another through a cache are joined: all their queries, keys filled up with zeros.
        InputError: nothing was recorded, or calls that don't belong together (see `calls`)."""
        return _joined([call.attention for call in _read_on(self.calls)])

    @property
    def cross(self) -> list[Tensor] | Weights:
        """Every layer's weights [heads, target's tokens, source's tokens], as `attention`."""
        found = [call.cross for call in _read_on(self.calls)]
        if not found[0]:
            raise InputError("this model has no cross-attention")
        return _joined(found)

    @property
    def encoder(self) -> list[Tensor] | Weights:
        """The weights in the encoder before a decoder, as `attention`. InputError: there is none, or it ran twice."""
        if len(self.encoded) != 1:
            raise InputError(f"an encoder before a decoder ran {len(self.encoded)} times; look at tape.encoded")
        return _joined([self.encoded[0].attention])


def _read_on(calls: list[Call]) -> list[Call]:
    if not calls:
        raise InputError("nothing was recorded: call the model inside the `with`, with attention=True")
    for before, after in pairwise(calls):
        if before.ends != after.starts:
            raise InputError("the recorded calls are not one text read on; look at tape.calls one by one")
    return calls


def _joined(calls: list[Weights]) -> list[Tensor] | Weights:
    layers = [[_join(list(parts)) for parts in zip(*layer, strict=True)] for layer in zip(*calls, strict=True)]
    return [layer[0] for layer in layers] if len(layers[0]) == 1 else layers


def _join(parts: list[Tensor]) -> Tensor:
    keys = max(p.shape[-1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, keys - p.shape[-1])) for p in parts], dim=1)


@contextmanager
def record(model: Transformer, *, attention: bool = True) -> Iterator[Tape]:
    """Record a model's forward passes while the `with` lasts. Weights are computed by the readable reference, kept in
    float32 on the CPU: heads · queries · keys · 4 bytes a layer."""
    tape, undo = Tape(), []
    stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None and attention]
    try:
        for stack in stacks:
            undo += _wire(stack, tape.calls if stack is model.last else tape.encoded)
        yield tape
    finally:
        for step in undo:
            step()


def _wire(stack: Stack, calls: list[Call]) -> list[Any]:
    """Make a stack write each of its passes; gives what undoes that."""
    now = Call([], [])

    def begin(_: Any, args: tuple[Tensor, Batch, Any]) -> None:
        nonlocal now
        now = Call(list(args[1].starts), list(args[1].ends))

    def end(*_: Any) -> None:  # a pass that is cut off before leaves nothing on the tape
        calls.append(now)

    def recording(q: Tensor, keys: Seen, batch: Batch, *, layer: Attention, **how: Any) -> Tensor:
        found: list[Tensor] = []

        def one(q: Tensor, keys: Keys, batch: Batch) -> Tensor:
            def path(q: Tensor, k: Tensor, v: Tensor, *, dropout: float, **scores: Any) -> Tensor:
                found.extend(_by_sequence(weights(q, k, **scores), keys.positions(), batch))
                return reference(q, k, v, dropout=dropout, **scores)

            return attend(q, keys, batch, path=path, **how)

        (now.cross if isinstance(layer, CrossAttention) else now.attention).append(found)
        return by_run(one, q, keys) if isinstance(keys, list) else one(q, keys, batch)

    hooks = (stack.register_forward_pre_hook(begin), stack.register_forward_hook(end))
    undo = [hook.remove for hook in hooks]
    for layer in [m for m in stack.modules() if isinstance(m, Attention)]:
        undo.append(partial(setattr, layer, "attend", layer.attend))
        layer.attend = partial(recording, layer=layer)
    return undo


def _by_sequence(p: Tensor, positions: Tensor, batch: Batch) -> list[Tensor]:
    """[B, H, Q, K] with keys anywhere → [H, queries, end] a sequence, key j at position j."""
    out = []
    for row, length in enumerate(batch.lengths):
        where = positions[row % positions.shape[0]]
        there = where >= 0
        sorted_ = p.new_zeros(p.shape[1], length, int(where.max()) + 1, dtype=torch.float32)
        out.append(sorted_.index_add(2, where[there], p[row, :, :length, there].detach().float()).cpu())
    return out
