"""What a prompt and its answer may be: ids of the vocabulary, within the context."""

from collections.abc import Sequence

from qkv import spec
from qkv.errors import InputError
from qkv.generate.settings import Settings


def check_ids(index: int, prompt: Sequence[int], settings: Settings, vocab: int) -> None:
    """InputError: an empty prompt; an id of it or of stop_tokens, or a number of logprobs, beyond the vocabulary."""
    if not prompt:
        raise InputError(f"prompt {index} is empty: there is nothing to continue")
    for name, ids in ((f"prompt {index}", prompt), ("stop_tokens", settings.stop_tokens)):
        outside = [i for i in (min(ids, default=0), max(ids, default=0)) if not 0 <= i < vocab]
        if outside:
            raise InputError(f"{name}: token id {outside[0]} is outside the vocabulary of {vocab}")
    if settings.logprobs > vocab:
        raise InputError(f"logprobs asks for {settings.logprobs} tokens of a vocabulary of {vocab}")


def totals(model: spec.Model, settings: Settings, cache: int | None = None) -> list[tuple[int, str]]:
    """What limits prompt and answer together: (tokens, what it is). `cache`: tokens that a given cache has room for.

    Beyond the context it was trained on a model's answers lose their sense, so that is only with `allow_long`; beyond
    the end of a table of positions, or where dynamic NTK scaling would change the angles of cached keys, never."""
    limits = []
    if model.context is not None and not settings.allow_long:
        limits.append((model.context, "the context that this model was trained on; allow_long=True goes beyond"))
    if isinstance(model.decoder.embed.position, spec.Learned):
        limits.append((model.decoder.embed.position.length, "this model's learned positions"))
    for block in model.decoder.blocks:
        position = block.mixer.position if isinstance(block.mixer, spec.Attention) else None
        if isinstance(position, spec.Rotary) and isinstance(position.scaling, spec.DynamicNTKScaling):
            limits.append((position.scaling.length, "from there on dynamic NTK scaling would change the cached keys"))
    if cache is not None:
        limits.append((cache, "the given cache"))
    if settings.max_length is not None:
        limits.append((settings.max_length, f"max_length ({settings.source('max_length')}); max_tokens lifts it"))
    return limits


def room(model: spec.Model, index: int, prompt: int, settings: Settings, cache: int | None = None) -> int:
    """At most how many tokens the answer to a prompt of so many tokens may have: at least one.

    InputError: the prompt leaves no room for an answer, or nothing at all limits it."""
    limits = totals(model, settings, cache)
    total, why = min(limits, default=(None, ""))
    if total is None and settings.max_tokens is None:
        raise InputError("nothing limits the answer: this model states no context, so give max_tokens")
    if total is not None and prompt >= total:
        raise InputError(f"prompt {index} has {prompt} tokens; with its answer it must fit into {total}: {why}")
    return min(x for x in (settings.max_tokens, None if total is None else total - prompt) if x is not None)
