"""Settings as one line for a person: what is in force, and who said so."""

from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qkv.generate.settings import Settings

DRAWING = ("temperature", "top_k", "top_p", "min_p")
SEARCHING = ("beams", "length_penalty", "early_stopping", "n_best")
SHAPING = (
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "no_repeat_ngram", "bad_words"),
    *("min_tokens", "min_length", "forced_first", "forced_last", "suppress", "suppress_first"),
)
REST = ("stop", "stop_tokens", "ignore_eos", "seed", "lookup", "allow_long")


def describe(settings: "Settings") -> str:
    """ "greedy (default); max_tokens 256 (default); stop_tokens 2 (tokenizer)"."""

    def said(*names: str) -> list[tuple[str, str]]:
        there = [name for name in names if settings.is_set(name)]
        return [(f"{name} {_show(getattr(settings, name))}", settings.source(name)) for name in there]

    kind = ""
    if settings.beams > 1:
        kind, how = "beam search: ", said(*SEARCHING)
    elif settings.temperature:
        kind, how = "sampling: ", said(*DRAWING)
    else:
        how = [("greedy", settings.source("temperature"))]
    length = said("max_length")
    if settings.max_tokens is not None:
        length.insert(0, (f"max_tokens {settings.max_tokens}", settings.source("max_tokens")))
    nothing = [("as many tokens as the context holds", settings.source("max_tokens"))]
    parts = (kind + _join(how + said(*SHAPING)), _join(length or nothing), _join(said(*REST)))
    return "; ".join(part for part in parts if part)


def _join(parts: list[tuple[str, str]]) -> str:
    """'a, b (source), c (another)' of (text, source) pairs."""
    groups = groupby(parts, lambda part: part[1])
    return ", ".join(f"{', '.join(text for text, _ in group)} ({source})" for source, group in groups)


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_show, value)) if len(value) <= 8 else f"{len(value)} of them"
    return f"{value:g}" if isinstance(value, float) else repr(value)
