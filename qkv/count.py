"""What a model costs, from its spec alone: trained numbers, arithmetic, cache and memory. No torch, nothing allocated.

    parameters(llama2_70b)            # 68_976_648_192
    kv_bytes_per_token(llama2_70b)    # 327_680: 320 KiB in 16 bits

Every part says its own cost once (`COSTS`), and the functions below are sums. The same line prices a part of your own:

    @costs(MyMixer)
    def _(mixer: MyMixer, dim: int) -> Cost: ...
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from qkv import spec
from qkv.errors import ConfigError, InputError


@dataclass(frozen=True)
class Cost:
    """One part's cost. A multiplication and its addition count as one product."""

    weights: int = 0  # trained numbers, without those of norms
    norms: int = 0  # trained numbers of norms
    products: int = 0  # products a token, whatever the context
    scores: int = 0  # products a token and key that it sees
    held: int = 0  # numbers that a cache keeps a token
    window: int | None = None  # the most tokens seen and kept; None: all

    def __add__(self, other: "Cost") -> "Cost":
        """Both together; they must not see different windows."""
        return Cost(
            self.weights + other.weights,
            self.norms + other.norms,
            self.products + other.products,
            self.scores + other.scores,
            self.held + other.held,
            self.window if other.window is None else other.window,
        )

    def seen(self, length: int) -> int:
        """How many of `length` tokens are seen and kept."""
        return length if self.window is None else min(length, self.window)


COSTS: dict[type[spec.Part], Callable[..., Cost]] = {}
F = TypeVar("F", bound=Callable[..., Cost])


def costs(kind: type[spec.Part]) -> Callable[[F], F]:
    """Register what a kind of part costs; called with the part and the sizes that its module is built with."""

    def register(function: F) -> F:
        COSTS[kind] = function
        return function

    return register


def cost(part: spec.Part | None, *sizes: int) -> Cost:
    """One part's cost. ConfigError: nothing says what it is."""
    if part is None:
        return Cost()
    function = COSTS.get(type(part))
    if function is None:
        raise ConfigError(f"nothing says what {type(part).__name__} costs; register it with @qkv.count.costs")
    return function(part, *sizes)


# --- the parts ------------------------------------------------------------------------------------------------------


@costs(spec.Rotary)
@costs(spec.Alibi)
@costs(spec.Sinusoidal)
def _nothing(part: spec.Part, *sizes: int) -> Cost:
    """Computed, not trained; its arithmetic is small beside the matrices'."""
    return Cost()


@costs(spec.Learned)
def _learned(position: spec.Learned, dim: int) -> Cost:
    return Cost(weights=(position.length + position.offset) * dim)


@costs(spec.RelativeBias)
def _relative_bias(position: spec.RelativeBias, heads: int, head_dim: int) -> Cost:
    return Cost(weights=position.buckets * heads)


@costs(spec.LayerNorm)
def _layer_norm(norm: spec.LayerNorm, dim: int) -> Cost:
    return Cost(norms=2 * dim if norm.bias else dim)


@costs(spec.RMS)
def _rms(norm: spec.RMS, dim: int) -> Cost:
    return Cost(norms=dim)


def _matrix(rows: int, columns: int, bias: bool) -> Cost:
    return Cost(weights=rows * columns + rows * bias, products=rows * columns)


@costs(spec.Plain)
def _plain(mlp: spec.Plain, dim: int) -> Cost:
    return _matrix(mlp.width, dim, mlp.bias) + _matrix(dim, mlp.width, mlp.bias)


@costs(spec.Gated)
def _gated(mlp: spec.Gated, dim: int) -> Cost:
    into = _matrix(mlp.width, dim, mlp.bias)
    return into + into + _matrix(dim, mlp.width, mlp.bias)


@costs(spec.Attention)
def _attention(attention: spec.Attention, dim: int) -> Cost:
    H, G, D = attention.heads, attention.kv_heads, attention.head_width(dim)
    window = attention.mask.size if isinstance(attention.mask, spec.Window) else None
    qk_norm = cost(attention.qk_norm, D)
    return (
        _matrix((H + 2 * G) * D, dim, attention.qkv_bias)
        + _matrix(dim, H * D, attention.out_bias)
        + qk_norm
        + qk_norm
        + cost(attention.position, H, D)
        + Cost(scores=2 * H * D, held=2 * G * D, window=window)
    )


@costs(spec.LMHead)
def _lm_head(head: spec.LMHead, vocab: int, dim: int, width: int) -> Cost:
    own = _matrix(vocab, dim, head.bias)
    return dataclasses.replace(own, weights=own.weights - vocab * dim * head.tied)


@costs(spec.MaskedLM)
def _masked_lm(head: spec.MaskedLM, vocab: int, dim: int, width: int) -> Cost:
    out = _matrix(vocab, width, True)
    out = dataclasses.replace(out, weights=out.weights - vocab * width * head.tied)
    return _matrix(width, dim, True) + cost(head.norm, width) + out


@costs(spec.Tag)
def _tag(head: spec.Tag, vocab: int, dim: int, width: int) -> Cost:
    return _matrix(len(head.labels), dim, head.bias)


@costs(spec.Span)
def _span(head: spec.Span, vocab: int, dim: int, width: int) -> Cost:
    return _matrix(2, dim, True)


@costs(spec.Replaced)
def _replaced(head: spec.Replaced, vocab: int, dim: int, width: int) -> Cost:
    return _matrix(dim, dim, True) + _matrix(1, dim, True)


@costs(spec.States)
@costs(spec.Pool)
def _states(head: spec.States | spec.Pool, vocab: int, dim: int, width: int) -> Cost:
    """A pooler reads one token a sequence: its arithmetic is not a token's."""
    return Cost(weights=_matrix(dim, dim, True).weights if head.pooler else 0)


@costs(spec.Classify)
def _classify(head: spec.Classify, vocab: int, dim: int, width: int) -> Cost:
    hidden = _matrix(dim, dim, True) if head.hidden else Cost()
    return Cost(weights=(hidden + _matrix(len(head.labels), dim, head.bias)).weights)


@costs(spec.Heads)
def _heads(head: spec.Heads, vocab: int, dim: int, width: int) -> Cost:
    return sum((cost(one, vocab, dim, width) for one in head.heads), Cost())


@costs(spec.Embed)
def _embed(embed: spec.Embed, dim: int) -> Cost:
    """All but the token table."""
    width = embed.width or dim
    own = Cost(weights=embed.segments * width) + cost(embed.position, width) + cost(embed.norm, width)
    return own + (_matrix(dim, width, True) if embed.width else Cost())


# --- the model ------------------------------------------------------------------------------------------------------

_NORMS = {"pre": 2, "post": 2, "parallel": 2, "sandwich": 4}


def _pieces(model: spec.Model) -> Iterator[tuple[str, Cost, int]]:
    """(role, cost, how many times) of everything in the model; blocks that repeat are priced once."""
    table = Cost(weights=model.vocab * model.width)
    yield "embedding", table, 1 if model.one_table else len(model.stacks)
    for stack in model.stacks:
        yield from _of_stack(stack, model.dim, held=stack is model.decoder)
    yield "head", cost(model.head, model.vocab, model.dim, model.width), 1


def _of_stack(stack: spec.Stack, dim: int, held: bool) -> Iterator[tuple[str, Cost, int]]:
    """`held`: whether a cache keeps its keys and values."""
    yield "embedding", cost(stack.embed, dim), 1
    mixer = stack.blocks[0].mixer
    if stack.position is not None and isinstance(mixer, spec.Attention):
        yield "attention", cost(stack.position, mixer.heads, mixer.head_width(dim)), 1
    built = Counter(itertools.islice(stack, stack.built))
    for block, times in Counter(stack).items():
        for role, piece, each in _of_block(block, dim):
            kept = piece if held else dataclasses.replace(piece, held=0)
            yield role, dataclasses.replace(kept, weights=0, norms=0), times * each
            yield role, Cost(weights=piece.weights, norms=piece.norms), built[block] * each
    yield "norms", cost(stack.norm, dim), 1


def _of_block(block: spec.Block, dim: int) -> Iterator[tuple[str, Cost, int]]:
    yield "attention", cost(block.mixer, dim), 1
    yield "attention", cost(block.cross, dim), 1
    yield "mlp", cost(block.mlp, dim), 1
    yield "norms", cost(block.norm, dim), _NORMS[block.place] + (block.cross is not None)


def parameters(model: spec.Model) -> int:
    """Trained numbers in all; a tied head counts once, as the embedding."""
    return sum(parameters_by_part(model).values())


def parameters_by_part(model: spec.Model) -> dict[str, int]:
    """Trained numbers of `embedding` (learned positions included), `attention`, `mlp`, `norms` and `head`."""
    out = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    for role, piece, times in _pieces(model):
        out[role] += times * piece.weights
        out["norms"] += times * piece.norms
    return out


def flops_per_token(model: spec.Model, context: int) -> int:
    """Floating-point operations to read one token forward when it sees `context` tokens, itself included. Of a model
    with encoder and decoder: one token of the source and one of the target, each seeing as many.

    2 · (numbers in every matrix that multiplies, the head's too) + Σ layers 4 · heads · head_dim · keys, where the
    keys are min(context, window): q·k and weights·v at two operations each. Norms, activations and softmax are left
    out. Over a text of n tokens the mean is what its middle token costs, context n / 2. Training takes three times as
    much (forward, and backward twice that)."""
    _whole("context", context)
    pieces = [(piece, times) for _, piece, times in _pieces(model)]
    return 2 * sum(times * (piece.products + piece.scores * piece.seen(context)) for piece, times in pieces)


def kv_bytes_per_token(model: spec.Model, bytes: int = 2) -> int:
    """Cache a token: 2 · Σ layers kv_heads · head_dim · bytes, for a text shorter than every window. An encoder keeps
    none; its decoder's layers keep two, their own and cross-attention's for a token of the source."""
    return cache_bytes(model, 1, 1, bytes)


def cache_bytes(model: spec.Model, length: int, batch: int = 1, bytes: int = 2) -> int:
    """The cache of `batch` sequences of `length` tokens each: a layer with a window holds at most its `size` tokens."""
    _whole("length", length)
    _whole("batch", batch)
    return sum(times * piece.held * piece.seen(length) for _, piece, times in _pieces(model)) * batch * bytes


def multi_head(model: spec.Model) -> spec.Model:
    """The same model with a key/value head for every query head: what grouping saves is the difference."""

    def ungrouped(mixer: Any) -> Any:
        is_attention = isinstance(mixer, spec.Attention)
        return dataclasses.replace(mixer, kv_heads=mixer.heads) if is_attention else mixer

    def of(stack: spec.Stack | None) -> spec.Stack | None:
        if stack is None:
            return None
        both = (dataclasses.replace(b, mixer=ungrouped(b.mixer), cross=ungrouped(b.cross)) for b in stack.blocks)
        return dataclasses.replace(stack, blocks=tuple(both))

    return dataclasses.replace(model, encoder=of(model.encoder), decoder=of(model.decoder))


@dataclass(frozen=True)
class Memory:
    """Bytes that stay while a model runs. What a step takes and gives back comes on top."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        return self.weights + self.cache


def memory(model: spec.Model, batch: int, context: int, bytes: int = 2) -> Memory:
    """Weights and cache at `bytes` a number, for `batch` sequences of `context` tokens."""
    return Memory(parameters(model) * bytes, cache_bytes(model, context, batch, bytes))


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number from 1 up, got {value!r}")
