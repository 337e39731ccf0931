"""What a model can continue, and what a prompt and its answer may be: ids of the vocabulary, within the context."""

from collections.abc import Iterator, Sequence

from qkv import spec
from qkv.errors import InputError
from qkv.generate.settings import Settings

LONGER = "the context that this model was trained on; allow_long=True goes beyond"
INSTEAD: dict[type[spec.Head], str] = {
    spec.MaskedLM: "it says what a mask hides (`fill`)",
    spec.Classify: "it labels a text (`predict`)",
    spec.Tag: "it labels each token (`predict`)",
    spec.Span: "it finds an answer in a text (`predict`)",
    spec.States: "it gives vectors (`embed`)",
    spec.Pool: "it gives vectors (`embed`)",
}


def check_generates(model: spec.Model) -> None:
    """InputError: this model doesn't continue texts; it says what it does."""
    if model.decoder is None or not isinstance(model.head, spec.LMHead):
        does = INSTEAD.get(type(model.head), "call it with ids for what it gives")
        what = "has no decoder" if model.decoder is None else "is without a language model's head"
        raise InputError(f"this model {what} ({type(model.head).__name__}), so it can't generate: {does}")


def check_ids(name: str, ids: Sequence[int], vocab: int) -> None:
    """InputError: an id beyond the vocabulary."""
    outside = [i for i in (min(ids, default=0), max(ids, default=0)) if not 0 <= i < vocab]
    if outside:
        raise InputError(f"{name}: token id {outside[0]} is outside the vocabulary of {vocab}")


def check_prompt(index: int, prompt: Sequence[int], settings: Settings, model: spec.Model) -> None:
    """InputError: an empty prompt; an id of it or of the settings, or a number of logprobs, beyond the vocabulary."""
    if not prompt:
        raise InputError(f"prompt {index} is empty: there is nothing to continue")
    check_ids(f"prompt {index}", prompt, model.vocab)
    for name in ("stop_tokens", "suppress", "suppress_first", "forced_last"):
        check_ids(name, getattr(settings, name), model.vocab)
    check_ids("bad_words", [i for word in settings.bad_words for i in word], model.vocab)
    check_ids("logit_bias", [i for i, _ in settings.logit_bias], model.vocab)
    check_ids("forced_first", () if settings.forced_first is None else (settings.forced_first,), model.vocab)
    if settings.logprobs > model.vocab:
        raise InputError(f"logprobs asks for {settings.logprobs} tokens of a vocabulary of {model.vocab}")


def check_source(model: spec.Model, index: int, length: int, settings: Settings) -> None:
    """InputError: an encoder can't read a prompt of so many tokens."""
    limits = [(model.context, LONGER)] if model.context is not None and not settings.allow_long else []
    if model.encoder is not None and isinstance(model.encoder.embed.position, spec.Learned):
        limits.append((model.encoder.embed.position.length, "its encoder's learned positions"))
    total, why = min(limits, default=(length, ""))
    if length > total:
        raise InputError(f"prompt {index} has {length} tokens; this model's encoder reads at most {total}: {why}")


def totals(model: spec.Model, settings: Settings, cache: int | None = None) -> Iterator[tuple[int, str]]:
    """What limits all that the decoder holds together: (tokens, what it is). `cache`: what a given one has room for.

    Beyond the context it was trained on a model's answers lose their sense, so that is only with `allow_long`; beyond
    the end of a table of positions, or where dynamic NTK scaling would change the angles of cached keys, never."""
    if model.context is not None and not settings.allow_long:
        yield model.context, LONGER
    if isinstance(model.last.embed.position, spec.Learned):
        yield model.last.embed.position.length, "this model's learned positions"
    mixers = [block.mixer for block in model.last.blocks]
    for position in (model.last.position, *(mixer.position for mixer in mixers if isinstance(mixer, spec.Attention))):
        if isinstance(position, spec.Rotary) and isinstance(position.scaling, spec.DynamicNTKScaling):
            yield position.scaling.length, "from there on dynamic NTK scaling would change the cached keys"
    if cache is not None:
        yield cache, "the given cache"
    if settings.max_length is not None:
        yield settings.max_length, f"max_length ({settings.source('max_length')}); max_tokens lifts it"


def room(model: spec.Model, index: int, prompt: int, settings: Settings, cache: int | None = None) -> int:
    """At most how many tokens the answer may have where the decoder begins with so many: at least one.

    InputError: the prompt leaves no room for an answer or for its min_tokens, or nothing at all limits it."""
    total, why = min(totals(model, settings, cache), default=(None, ""))
    if total is None and settings.max_tokens is None:
        raise InputError("nothing limits the answer: this model states no context, so give max_tokens")
    if total is not None and prompt >= total:
        raise InputError(f"prompt {index} has {prompt} tokens; with its answer it must fit into {total}: {why}")
    limit = min(x for x in (settings.max_tokens, None if total is None else total - prompt) if x is not None)
    name = "min_tokens" if settings.min_tokens > settings.min_length - prompt else "min_length"
    least = max(settings.min_tokens, settings.min_length - prompt)
    if least > limit:
        asked = f"{name} {getattr(settings, name)} ({settings.source(name)})"
        raise InputError(
            f"{asked} asks for {least} new tokens and there is room for {limit}; give {name}=0, or more room"
        )
    return limit
