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


def context_limit(model: spec.Model, allow_long: bool) -> tuple[int | None, str]:
    """Tokens that a sequence may have in all (None: no limit is known), and what sets that limit.

    Beyond the trained context a model's answers lose their sense, so that is only with `allow_long`; beyond the end of
    a table of positions, or where dynamic NTK scaling would change the angles of cached keys, never."""
    limits = [] if allow_long or model.context is None else [(model.context, "trained context")]
    if isinstance(model.decoder.embed.position, spec.Learned):
        limits.append((model.decoder.embed.position.length, "learned positions"))
    for block in model.decoder.blocks:
        position = block.mixer.position if isinstance(block.mixer, spec.Attention) else None
        if isinstance(position, spec.Rotary) and isinstance(position.scaling, spec.DynamicNTKScaling):
            limits.append((position.scaling.length, "length from which its dynamic NTK scaling changes cached keys"))
    return min(limits, default=(None, ""), key=lambda limit: limit[0])


def room(model: spec.Model, index: int, prompt: int, settings: Settings) -> int:
    """At most how many tokens the answer to a prompt of so many tokens may have: at least one.

    InputError: the prompt leaves no room, or nothing at all limits the answer."""
    context, why = context_limit(model, settings.allow_long)
    if context is not None and prompt >= context:
        way = "shorten it" if why != "trained context" else "shorten it, or give allow_long=True to go beyond"
        raise InputError(
            f"prompt {index} has {prompt} tokens and must leave room in this model's {context} ({why}): {way}"
        )
    if settings.max_length is not None and prompt >= settings.max_length:
        raise InputError(
            f"prompt {index} has {prompt} tokens, which leaves no room in max_length {settings.max_length}"
            f" ({settings.source('max_length')}): shorten it, or give max_tokens instead"
        )
    totals = [limit - prompt for limit in (context, settings.max_length) if limit is not None]
    limits = totals if settings.max_tokens is None else [*totals, settings.max_tokens]
    if not limits:
        raise InputError("nothing limits the answer: this model states no context, so give max_tokens")
    return min(limits)
