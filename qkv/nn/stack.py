"""The stack of blocks, and the whole model: ids in, logits out."""

from collections.abc import Sequence
from itertools import repeat
from typing import cast, overload

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import InputError
from qkv.nn import attention, block, embed, head, mlp, norm  # noqa: F401  (importing registers their parts)
from qkv.nn.batch import Batch
from qkv.nn.block import PreNorm
from qkv.nn.cache import Cache, Storage, Stream
from qkv.nn.parts import build, implements

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Ids = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]


@implements(spec.Stack)
class Stack(nn.Module):
    """Embedding, blocks, last norm."""

    def __init__(self, stack: spec.Stack, vocab: int, dim: int) -> None:
        super().__init__()
        self.embed = build(stack.embed, vocab, dim)
        self.blocks = nn.ModuleList(build(layer, dim) for layer in stack)
        self.norm = build(stack.norm, dim) if stack.norm else nn.Identity()

    def forward(self, ids: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """ids [T] → states [T, C]."""
        x = self.embed(ids, batch)
        storages: list[Storage] | repeat[Storage] = cache.layers if cache is not None else repeat(Stream())
        for layer, storage in zip(self.blocks, storages, strict=False):
            x = layer(x, batch, storage)
        return self.norm(x)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The model that a spec describes, with fresh weights (normal, as GPT-2's; norms one). `qkv.load` fills them."""

    def __init__(self, model: spec.Model) -> None:
        super().__init__()
        self.spec = model
        self.decoder: Stack = build(model.decoder, model.vocab, model.dim)
        self.head = build(model.head, model.vocab, model.dim)

    @property
    def device(self) -> torch.device:
        return self.decoder.embed.tokens.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.embed.tokens.weight.dtype  # type: ignore[no-any-return]

    @overload
    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor: ...
    @overload
    def forward(self, ids: Sequence[Sequence[int]] | Sequence[Tensor], cache: Cache | None = None) -> list[Tensor]: ...
    def forward(self, ids: Ids, cache: Cache | None = None) -> Tensor | list[Tensor]:
        """ids [B, L] → logits [B, L, V]; a list of B sequences of any lengths → a list of [length, V].

        With a cache (`new_cache`) the ids continue what it holds, and no gradient flows.
        InputError: ids out of range, an empty sequence, a length beyond the positions or the cache."""
        stream, lengths = as_stream(ids, self.spec.vocab, self.device)
        batch = Batch(lengths, cache.starts(lengths) if cache is not None else [0] * len(lengths), self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            logits = self.logits(self.states(stream, batch, cache))
        return logits.view(*ids.shape, -1) if isinstance(ids, Tensor) else batch.split(logits)

    def states(self, stream: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        """ids [T] of a batch → last states [T, C]; the cache then holds its tokens too."""
        x = self.decoder(stream, batch, cache)
        if cache is not None:
            cache.advance(batch)
        return x  # type: ignore[no-any-return]

    def logits(self, states: Tensor) -> Tensor:
        """states [T, C] → logits [T, V]."""
        return self.head(states, self.decoder.embed.tokens.weight)  # type: ignore[no-any-return]

    def new_cache(self, length: int | None = None) -> Cache:
        """An empty cache for any number of sequences (the first step decides) of at most `length` tokens each, all
        of whose memory is taken at the first step; None: it grows as needed, up to twice what is held."""
        return Cache([cast(PreNorm, layer).new_storage(length) for layer in self.decoder.blocks], length)


def as_stream(ids: Ids, vocab: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """Ids at the edge → the stream [T] and each sequence's length. InputError names the sequence and the id."""
    if isinstance(ids, Tensor) and ids.ndim != 2:
        raise InputError(f"ids must be [batch, length], got the shape {list(ids.shape)}")
    rows = [_row(i, row) for i, row in enumerate(ids)]
    if not rows:
        raise InputError("no sequence was given")
    stream = torch.cat(rows).to(device=device, dtype=torch.long)
    low, high = (int(x) for x in torch.aminmax(stream))
    if low < 0 or high >= vocab:
        raise InputError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab}")
    return stream, [row.numel() for row in rows]


def _row(i: int, ids: Sequence[int] | Tensor) -> Tensor:
    try:
        row = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"sequence {i} must be a row of whole numbers, got {ids!r:.80}") from error
    if row.ndim == 1 and row.numel() == 0:
        raise InputError(f"sequence {i} is empty: there is nothing to read")
    if row.ndim != 1 or row.dtype not in WHOLE:
        raise InputError(f"sequence {i} must be a row of whole numbers, got {row.dtype} of shape {list(row.shape)}")
    return row
