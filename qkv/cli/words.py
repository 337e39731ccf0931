"""A spec in words, one line for each of its aspects: what `show` prints and `diff` puts side by side.

Every field of the spec is in a line or at its default, so two models with the same lines are the same.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from qkv import spec
from qkv.specfile import say

DOT = " · "


def lines(model: spec.Model, *, named: bool = False) -> list[tuple[str, str]]:
    """(aspect, words) from the ids to the logits. `named`: each stack's aspects with its name, beside a model with two
    (which always has them)."""
    both = len(model.stacks) == 2
    about = [
        ("family", model.family or "none"),
        ("kind", "encoder and decoder" if both else "encoder" if model.encoder else "decoder"),
        ("dim", f"{model.dim:,}"),
        ("vocabulary", _join(f"{model.vocab:,}", "" if model.one_table else "a table for each stack")),
        ("context", f"{model.context:,} tokens" if model.context else "not said"),
    ]
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is not None:
            about += [
                (f"{name} {aspect}" if both or named else aspect, words) for aspect, words in _stack(stack, model.dim)
            ]
    start = [] if model.start is None else [("start", f"token {model.start}")]
    return [*about, *start, ("head", _part(model.head))]


def _stack(stack: spec.Stack, dim: int) -> Iterator[tuple[str, str]]:
    """(aspect, words) of one stack."""
    yield "layers", _join(f"{stack.layers:,}", f"{stack.built} with weights of their own" if stack.shared else "")
    yield "embedding", _embedding(stack.embed, dim)
    yield "position", _position(stack)
    yield "attention", _each(stack, lambda block: _mixer(block.mixer, dim))
    yield "mask", _each(stack, lambda block: _part(getattr(block.mixer, "mask", None)))
    if any(block.cross for block in stack.blocks):
        yield "cross-attention", _each(stack, lambda block: _mixer(block.cross, dim) if block.cross else "none")
    yield "MLP", _each(stack, lambda block: _part(block.mlp))
    yield "norm", _norms(stack)


def _each(stack: spec.Stack, words: Callable[[spec.Block], str]) -> str:
    """The words for the stack's blocks: once, or for each place in the pattern that they repeat."""
    places: dict[str, list[int]] = {}
    for i, block in enumerate(stack.blocks, 1):
        places.setdefault(words(block), []).append(i)
    if len(places) == 1:
        return next(iter(places))
    of = f" of every {len(stack.blocks)}" if len(stack.blocks) < stack.layers else ""
    return "\n".join(f"{_numbers(numbers)}{of}: {text}" for text, numbers in places.items())


def _numbers(numbers: list[int]) -> str:
    runs = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2
    shown = f"{numbers[0]}–{numbers[-1]}" if runs else ", ".join(map(str, numbers))
    return f"{'layer' if len(numbers) == 1 else 'layers'} {shown}"


def _rest(part: spec.Part, *told: str) -> Iterator[str]:
    """What the caller has not told of a part: its fields that are not at their default."""
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name not in told and value != default:
            yield f"{f.name.replace('_', ' ')} {_number(value)}" if value is not True else f.name.replace("_", " ")


def _number(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= 1000 and value == int(value):
        return f"{int(value):,}"
    return say(value)


def _join(*parts: str) -> str:
    return DOT.join(part for part in parts if part)


def _embedding(embed: spec.Embed, dim: int) -> str:
    scale = f"√{dim:,}" if embed.scale == math.sqrt(dim) else _number(embed.scale)
    return (
        _join(
            f"times {scale}" if embed.scale != 1 else "",
            f"normed: {_part(embed.norm)}" if embed.norm else "",
            f"{embed.segments} segment{'s' * (embed.segments > 1)}" if embed.segments else "",
            f"{embed.width:,} wide, then a matrix to {dim:,}" if embed.width else "",
            *_rest(embed, "scale", "norm", "position", "segments", "width"),
        )
        or "as it is"
    )


def _position(stack: spec.Stack) -> str:
    added = stack.embed.position
    if stack.position is not None:
        return _join(*([_part(added)] if added else []), f"{_part(stack.position)}, the same for all layers")
    inside = _each(stack, lambda block: _part(getattr(block.mixer, "position", None)))
    if added is None:
        return inside
    return _part(added) if inside == "none" else f"{_part(added)}\n{inside}"


def _mixer(mixer: spec.Mixer, dim: int) -> str:
    if type(mixer) is not spec.Attention:
        return say(mixer)
    H, G = mixer.heads, mixer.kv_heads
    groups = {1: "one key/value head for all (multi-query)", H: "multi-head"}
    biases = {(True, True): "biases", (True, False): "q, k, v biases", (False, True): "output bias"}
    return _join(
        f"{H} heads of {mixer.head_width(dim)}",
        groups.get(G, f"{G} key/value heads, each for {H // G} (grouped)"),
        biases.get((mixer.qkv_bias, mixer.out_bias), ""),
        f"q and k normed: {_part(mixer.qk_norm)}" if mixer.qk_norm else "",
        f"scores times {say(mixer.scale)}" if mixer.scale is not None else "",
        f"scores capped at {_number(mixer.softcap)}" if mixer.softcap is not None else "",
        f"dropout {say(mixer.dropout)}" if mixer.dropout else "",
    )


_PLACES = {
    "pre": "before attention and MLP",
    "post": "after each sum",
    "sandwich": "before and after attention and MLP",
    "parallel": "before attention and MLP, side by side",
}


def _norms(stack: spec.Stack) -> str:
    def of_block(block: spec.Block) -> str:
        return _join(_part(block.norm), _PLACES[block.place], *_rest(block, "mixer", "mlp", "norm", "place", "cross"))

    same = {block.norm for block in stack.blocks} == {stack.norm}
    return f"{_each(stack, of_block)}{DOT}at the end: {'the same' if same else _part(stack.norm)}"


# --- single parts ---------------------------------------------------------------------------------------------------


def _part(part: spec.Part | None) -> str:
    """A part of the spec in words; one of the user's own as its class and fields."""
    words = _WORDS.get(type(part))
    return words(part) if words else say(part)


def _learned(position: spec.Learned) -> str:
    return _join(f"learned, {position.length:,} vectors added to the embedding", *_rest(position, "length"))


def _sinusoidal(position: spec.Sinusoidal) -> str:
    return _join(f"sinusoidal, base {_number(position.base)}", *_rest(position, "base"))


def _rotary(position: spec.Rotary) -> str:
    part = f"{position.dims} numbers of a head" if position.dims else ""
    stretch = _part(position.scaling) if position.scaling else ""
    return _join(f"rotary, base {_number(position.base)}", part, *_rest(position, "base", "dims", "scaling"), stretch)


def _scaling(scaling: spec.Scaling) -> str:
    rest = ", ".join(_rest(scaling, "factor"))
    return f"stretched {_number(scaling.factor)} times, {_SCALINGS[type(scaling)]}" + (f" ({rest})" if rest else "")


def _relative_bias(position: spec.RelativeBias) -> str:
    words = f"a trained bias for each of {position.buckets:,} buckets of distance up to {position.distance:,}"
    return _join(words, *_rest(position, "buckets", "distance"))


def _mlp(mlp: spec.MLP) -> str:
    kind = "gated" if type(mlp) is spec.Gated else "plain"
    dropout = f"dropout {say(mlp.dropout)}" if mlp.dropout else ""
    return _join(f"{kind}, {mlp.activation}", f"{mlp.width:,} wide", "biases" if mlp.bias else "", dropout)


def _layer_norm(norm: spec.LayerNorm) -> str:
    return f"LayerNorm{'' if norm.bias else ' without bias'}, eps {say(norm.eps)}"


def _rms(norm: spec.RMS) -> str:
    return f"RMS{' of 1 + w' if norm.one_plus else ''}, eps {say(norm.eps)}"


def _lm_head(head: spec.LMHead) -> str:
    return _join(
        "language model, " + ("tied to the embedding" if head.tied else "a matrix of its own"),
        "bias" if head.bias else "",
        f"states times {_number(head.scale)}" if head.scale != 1 else "",
        f"logits capped at {_number(head.softcap)}" if head.softcap is not None else "",
    )


def _masked_lm(head: spec.MaskedLM) -> str:
    tied = "tied to the embedding" if head.tied else "a matrix of its own"
    return _join(f"masked language model, {tied}", head.activation, _part(head.norm))


def _labels(head: spec.Classify | spec.Tag) -> str:
    shown = ", ".join(head.labels[:8]) + (f" and {len(head.labels) - 8} more" if len(head.labels) > 8 else "")
    what = "a label for each token" if isinstance(head, spec.Tag) else _PROBLEMS[head.problem]
    return _join(f"{what}: {shown}", *_rest(head, "labels", "problem"))


_PROBLEMS = {"single": "one label", "multi": "any number of labels", "regression": "a number for each label"}


_SCALINGS: dict[type, str] = {
    spec.LinearScaling: "linear",
    spec.NTKScaling: "NTK",
    spec.DynamicNTKScaling: "dynamic NTK",
    spec.Yarn: "YaRN",
    spec.Llama3Scaling: "Llama 3",
}
_WORDS: dict[type, Callable[[Any], str]] = {
    **dict.fromkeys(_SCALINGS, _scaling),
    spec.Learned: _learned,
    spec.Sinusoidal: _sinusoidal,
    spec.Rotary: _rotary,
    spec.Alibi: lambda _: "ALiBi: a slope a head over the distance",
    spec.RelativeBias: _relative_bias,
    spec.Full: lambda _: "full: every key of the sequence",
    spec.Causal: lambda _: "causal",
    spec.Window: lambda mask: f"causal, the last {mask.size:,} tokens",
    spec.Plain: _mlp,
    spec.Gated: _mlp,
    spec.LayerNorm: _layer_norm,
    spec.RMS: _rms,
    spec.LMHead: _lm_head,
    spec.MaskedLM: _masked_lm,
    spec.Classify: _labels,
    spec.Tag: _labels,
    spec.Span: lambda head: _join("an answer's first and last token", *_rest(head)),
    spec.Replaced: lambda head: f"was each token replaced?, {head.activation}",
    spec.States: lambda head: _join("the states themselves", *_rest(head)),
    spec.Pool: lambda head: _join(
        f"one vector a text: {head.how}", "of length 1" if head.normalize else "", *_rest(head, "how", "normalize")
    ),
    spec.Heads: lambda head: "\n".join(map(_part, head.heads)),
}
