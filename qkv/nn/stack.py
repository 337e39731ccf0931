"""The stack of blocks, and the whole model: ids in, what the head computes out."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.nn import attention, block, embed, head, mlp, norm  # noqa: F401  (importing registers their parts)
from qkv.nn.batch import Batch
from qkv.nn.block import PreNorm
from qkv.nn.cache import Cache, Kept
from qkv.nn.edge import Ids, as_stream, segments_of
from qkv.nn.fixed import Memory
from qkv.nn.head import LMHead
from qkv.nn.packed import Packed
from qkv.nn.paged import PagedCache, Pool
from qkv.nn.parts import build, implements


@implements(spec.Stack)
class Stack(nn.Module):
    """Embedding, blocks, last norm."""

    def __init__(self, stack: spec.Stack, vocab: int, dim: int) -> None:
        super().__init__()
        self.embed = build(stack.embed, vocab, dim)
        self.position = _for_all(stack, dim)
        self.blocks = nn.ModuleList(build(one, dim) for one, _ in zip(stack, range(stack.built), strict=False))
        self.norm = build(stack.norm, dim) if stack.norm else nn.Identity()
        self.layers = stack.layers
        if self.position is not None:
            for one in self.blocks:
                cast(nn.Module, one.mixer).position = self.position

    def in_turn(self) -> list[PreNorm]:
        """The block of each layer, in order."""
        return [cast(PreNorm, self.blocks[i % len(self.blocks)]) for i in range(self.layers)]

    def forward(self, ids: Tensor, batch: Batch, kept: Sequence[Kept]) -> Tensor:
        """ids [T] → states [T, C]. `kept`: for each layer what it keeps or only passes on."""
        x = self.embed(ids, batch)
        for layer, own in zip(self.in_turn(), kept, strict=True):
            x = layer(x, batch, own)
        return self.norm(x)  # type: ignore[no-any-return]

    def passing(self, memory: Memory | None = None) -> list[Kept]:
        """For each layer what serves where nothing is to be kept."""
        return [layer.passing(memory) for layer in self.in_turn()]

    def new_storages(self, length: int | None, memory: Memory | None) -> list[Kept]:
        """For each layer where a cache keeps its keys and values."""
        return [layer.new_storage(length, memory) for layer in self.in_turn()]

    def new_paged(self, pool: Pool) -> list[Kept]:
        """For each layer where a cache of pages does."""
        return [layer.new_paged(pool) for layer in self.in_turn()]


def _for_all(stack: spec.Stack, dim: int) -> nn.Module | None:
    """The position scheme of all layers, if there is one."""
    mixer = stack.blocks[0].mixer
    if stack.position is None or not isinstance(mixer, spec.Attention):
        return None
    return cast(nn.Module, build(stack.position, mixer.heads, mixer.head_width(dim)))


class Transformer(nn.Module):
    """The model that a spec describes, with fresh weights (normal, as GPT-2's; norms one). `qkv.load` fills them.

    `encoder` and `decoder` are None where the spec has none."""

    def __init__(self, model: spec.Model) -> None:
        super().__init__()
        self.spec = model
        self.encoder: Stack | None = build(model.encoder, model.vocab, model.dim) if model.encoder else None
        self.decoder: Stack | None = build(model.decoder, model.vocab, model.dim) if model.decoder else None
        self.head = build(model.head, model.vocab, model.dim, model.width)
        if self.encoder is not None and self.decoder is not None and model.one_table:
            self.decoder.embed.tokens = self.encoder.embed.tokens

    @property
    def last(self) -> Stack:
        """The stack that the head reads: the decoder, or the encoder where there is none."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None
        return stack

    @property
    def table(self) -> Tensor:
        """The token vectors [V, E] of that stack."""
        return self.last.embed.tokens.weight  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def cache_dtype(self) -> torch.dtype | None:
        """What `new_cache` holds keys and values in: bfloat16 where weights are packed (their products round to 8 bits)
        and activations have more than 16 bits; None: as they come."""
        packed = any(isinstance(part, Packed) for part in self.modules())
        return torch.bfloat16 if packed and self.dtype.itemsize > torch.bfloat16.itemsize else None

    def forward(
        self, ids: Ids, target: Ids | None = None, *, segments: Ids | None = None, cache: Cache | None = None
    ) -> Any:
        """What the head computes: for ids [B, L] a tensor [B, L, …] (a head with one answer a sequence: [B, …]), for a
        list of B sequences of any lengths a list of B tensors [length, …] (or […]); of several heads a tuple of these.

        `target`: what the decoder of an encoder–decoder reads, in either form, and the answer is then of its form (not
        given: the ids themselves, behind the spec's `start`). `segments`: the kind of each token of ids, in their form.
        With a cache (`new_cache`) the ids (of an encoder–decoder: the decoder's) continue what it holds, and no
        gradient flows.
        InputError: ids out of range, an empty sequence, a length beyond the positions or the cache."""
        if self.encoder is not None and self.decoder is not None and cache is None:
            memory = self.encode(ids, segments=segments)
            return self._run(self._shifted(ids) if target is None else target, None, None, memory)
        if target is not None:
            raise InputError("a target is for a model with encoder and decoder, and without a cache (which takes ids)")
        return self._run(ids, segments, cache, None)

    def _run(self, ids: Ids, segments: Ids | None, cache: Cache | None, memory: Memory | None) -> Any:
        """The stack that the head reads, over ids at the edge."""
        stream, batch = self.batch(ids, segments=segments, cache=cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None):
            out = self.head(self.states(stream, batch, cache, memory), batch, self.table)
        return self.head.grid(out, batch) if isinstance(ids, Tensor) else self.head.rows(out, batch)

    def encode(self, ids: Ids, *, segments: Ids | None = None) -> Memory:
        """The encoder's states of ids, for its decoder. InputError: there is no encoder; and as in `forward`."""
        if self.encoder is None:
            raise InputError("this model has no encoder: its ids go to the decoder at once")
        stream, batch = self.batch(ids, segments=segments, stack=self.spec.encoder)
        return Memory(self.encoder(stream, batch, self.encoder.passing()), batch)

    def states(self, stream: Tensor, batch: Batch, cache: Cache | None = None, memory: Memory | None = None) -> Tensor:
        """ids [T] of a batch → last states [T, C]; the cache then holds its tokens too."""
        kept = cache.layers if cache is not None else self._passing(memory)
        x = self.last(stream, batch, kept)
        if cache is not None:
            cache.advance(batch)
        return x  # type: ignore[no-any-return]

    def _passing(self, memory: Memory | None) -> list[Kept]:
        """What serves where there is no cache, rounding as one would: an answer doesn't depend on that."""
        kept = self.last.passing(memory)
        if self.decoder is not None and (dtype := self.cache_dtype) is not None:
            for own in kept:
                own.keep_in(dtype)
        return kept

    def logits(self, states: Tensor) -> Tensor:
        """states [N, C] → logits [N, V]. InputError: another head than a language model's."""
        if not isinstance(self.head, LMHead):
            raise InputError(f"this model's head is {type(self.spec.head).__name__}: it does not continue a text")
        return self.head.logits(states, self.table)

    def new_cache(
        self, length: int | None = None, *, memory: Memory | None = None, dtype: torch.dtype | None = None
    ) -> Cache:
        """An empty cache for any number of sequences (the first step decides) of at most `length` tokens each, all
        of whose memory is taken at the first step; None: it grows as needed, up to twice what is held. `memory`: what
        the decoder of an encoder–decoder looks at, one sequence of it for each of the cache's. `dtype`: of the keys and
        values held; None: `cache_dtype`. InputError: it is not one of floating point."""
        with torch.no_grad():
            return Cache(self.last.new_storages(length, memory), length, dtype or self.cache_dtype)

    def new_paged_cache(self, pages: int, size: int = 16, *, dtype: torch.dtype | None = None) -> PagedCache:
        """A cache of so many pages of `size` tokens each, all of whose memory is taken now, for the sequences that its
        `place` names. `dtype`: of the keys and values held; None: `cache_dtype`, or the weights'. InputError: no page,
        a size that is no multiple of 16, or a dtype that is not one of floating point."""
        pool = Pool(pages, size, dtype or self.cache_dtype or self.dtype, self.device)
        return PagedCache(self.last.new_paged(pool), pool)

    def batch(
        self, ids: Ids, *, segments: Ids | None = None, cache: Cache | None = None, stack: spec.Stack | None = None
    ) -> tuple[Tensor, Batch]:
        """Ids at the edge → the stream [T] and its batch, which go to `states`. `stack`: the one that
        is to read them (None: the one that the head reads). InputError as in `forward`."""
        stream, lengths = as_stream(ids, self.spec.vocab, self.device)
        batch = Batch(lengths, cache.starts(lengths) if cache is not None else [0] * len(lengths), self.device)
        if segments is not None:
            batch.segments = segments_of(segments, lengths, (stack or self.spec.last).embed.segments, self.device)
        return stream, batch

    def _shifted(self, ids: Ids) -> Ids:
        """Each sequence of ids that an encoder has taken, behind the start token and without its own last one."""
        if self.spec.start is None:
            raise ConfigError("this model's spec names no start token: give the decoder's ids as `target`")
        if isinstance(ids, Tensor):
            ids = ids.long()  # a narrow type may not hold the start token
            return torch.cat((ids.new_full((len(ids), 1), self.spec.start), ids[:, :-1]), 1)
        return [[self.spec.start, *(row.tolist() if isinstance(row, Tensor) else row)[:-1]] for row in ids]
