"""Settings: how a text is continued. Every argument of `generate` is a field here and is checked here, once.

    settings = Settings.of(generation_config, eos=tokenizer.eos, temperature=0.7)
    print(settings.describe())

prints what is in force and who said so: "sampling: temperature 0.7 (given), top_p 0.9 (generation_config.json);
max_tokens 256 (default); stop_tokens 2 (tokenizer)".
"""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from numbers import Integral, Real
from typing import Any

from qkv.errors import ConfigError, InputError
from qkv.generate.generation_config import FILE, read_generation_config

MOST_STOPS, LONGEST_STOP, MOST_STOP_TOKENS = 64, 1024, 1024  # each is looked for after every token
SAMPLING = ("top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Settings:
    """How to go on after a prompt. InputError names the field that is wrong.

    max_tokens: at most this many new ones; None: as many as the context holds.
    max_length: at most this many in all, the prompt's included (transformers' older limit); None: not limited so.
    temperature: 0 is greedy: the most likely token each time. Else logits are divided by it.
    top_k: draw from the k most likely (all that tie with the last of them too); 0: from all.
    top_p: draw from the fewest tokens whose probabilities come to top_p (arXiv 1904.09751); 1: from all.
    min_p: draw from those at least min_p as likely as the likeliest (arXiv 2407.01082); 0: from all.
    repetition_penalty: tokens of the prompt and the text so far have positive logits divided by it and negative ones
        multiplied (arXiv 1909.05858); 1: none. It acts on greedy decoding too.
    seed: each prompt's draws depend on it, the token's number and nothing else, so a prompt's text is the same alone,
        in a batch and in any order. None: one for each prompt from torch's global generator; the Generation says it.
    stop: texts that end the answer; they are not part of it.
    stop_tokens: ids that end the answer (the eos). They are in `tokens` and not in `text`.
    ignore_eos: read on past stop_tokens, to fill a length or to measure speed.
    logprobs: True: log-probabilities of the chosen tokens; n ≥ 1: and of the n likeliest at each place. They are
        those of the model, before penalty, temperature and truncation.
    allow_long: go beyond the context that the model was trained on, where its positions can.
    prefill_chunk: tokens that one step reads, of all prompts together; it bounds memory, the answer is the same.
    """

    max_tokens: int | None = 256
    max_length: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool | int = False
    allow_long: bool = False
    prefill_chunk: int = 512
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("stop", "stop_tokens"):
            object.__setattr__(self, name, _tuple(name, getattr(self, name)))
        for name, low in (("max_tokens", 1), ("max_length", 1), ("seed", 0)):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), low, 2**63 - 1)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _whole("prefill_chunk", self.prefill_chunk, 1, 2**31 - 1)
        if self.temperature != 0 or isinstance(self.temperature, bool):
            # Below, logits / temperature overflows float32; above, it says nothing any more.
            _number("temperature", self.temperature, 1e-6, 1e6, "0 (greedy) or ")
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InputError("top_p must be above 0 (temperature 0 is greedy), got 0")
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        for name in ("ignore_eos", "allow_long"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.logprobs, bool):
            _whole("logprobs", self.logprobs, 1, 2**24, "False, True or ")
        self._check_stops()

    def _check_stops(self) -> None:
        if len(self.stop) > MOST_STOPS or len(self.stop_tokens) > MOST_STOP_TOKENS:
            raise InputError(
                f"stop may hold {MOST_STOPS} texts and stop_tokens {MOST_STOP_TOKENS} ids,"
                f" got {len(self.stop)} and {len(self.stop_tokens)}"
            )
        for text in self.stop:
            if not isinstance(text, str) or not text or len(text) > LONGEST_STOP:
                got = f"one of {len(text)}" if isinstance(text, str) else repr(text)
                raise InputError(f"stop must hold texts of 1 to {LONGEST_STOP} characters, got {got}")
        for token in self.stop_tokens:
            _whole("stop_tokens", token, 0, 2**24)

    @classmethod
    def of(
        cls,
        generation: Mapping[str, Any] | None = None,
        *,
        eos: Sequence[int] = (),
        without: Collection[str] = (),
        origin: str = FILE,
        **changes: Any,
    ) -> "Settings":
        """What generation_config.json says, then `changes`, which win. `eos`: the tokenizer's, where the file has none.
        `origin`: what to call the file where something else says it (config.json, a GGUF file).

        ConfigError: the file asks for something that changes the answer and isn't done here (beam search, n-gram
        blocking, …) or for something unknown; `without` names such keys to do without. InputError: a wrong change."""
        said, sources = read_generation_config(generation or {}, without)
        sources = {name: source.replace(FILE, origin) for name, source in sources.items()}
        if eos and "stop_tokens" not in said:
            said["stop_tokens"], sources["stop_tokens"] = tuple(eos), "tokenizer"
        try:
            settings = cls(**said, sources=sources)
        except InputError as error:
            raise ConfigError(f"{FILE}: {error}") from error
        return settings.replace(**changes)

    def replace(self, **changes: Any) -> "Settings":
        """These settings with some fields changed. Asking for max_tokens lifts max_length, as in transformers.

        InputError: no such field; a wrong value; top_k, top_p or min_p for a greedy answer, which they don't change."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "sources"]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5) or [", ".join(names)]
                raise InputError(f"generate has no argument {name!r}; did you mean {near[0]}?")
        if "max_tokens" in changes:
            changes = {"max_length": None, **changes}
        new = dataclasses.replace(self, **changes, sources={**self.sources, **dict.fromkeys(changes, "given")})
        for name in SAMPLING:
            if name in changes and "temperature" not in changes and new.temperature == 0 and new.is_set(name):
                raise InputError(f"{name} changes nothing while temperature is 0 (greedy); give a temperature too")
        return new

    def is_set(self, name: str) -> bool:
        """Is this field another than its default?"""
        return bool(getattr(self, name) != type(self).__dataclass_fields__[name].default)

    def describe(self) -> str:
        """One line for a person: what is in force, and who said so."""
        drawing = [name for name in ("temperature", *SAMPLING) if self.is_set(name)]
        drawn = [self._say(name, f"{getattr(self, name):g}") for name in drawing]
        how = drawn if self.temperature else [("greedy", self.source("temperature"))]
        if self.is_set("repetition_penalty"):
            how.append(self._say("repetition_penalty", f"{self.repetition_penalty:g}"))
        limits = [name for name in ("max_tokens", "max_length") if getattr(self, name) is not None]
        length = [self._say(name, str(getattr(self, name))) for name in limits]
        rest = [name for name in ("stop", "stop_tokens", "ignore_eos", "seed", "allow_long") if self.is_set(name)]
        parts = (
            ("sampling: " if self.temperature else "") + _join(how),
            _join(length or [("as many tokens as the context holds", self.source("max_tokens"))]),
            _join([self._say(name, _show(getattr(self, name))) for name in rest]),
        )
        return "; ".join(part for part in parts if part)

    def _say(self, name: str, value: str) -> tuple[str, str]:
        return f"{name} {value}", self.source(name)

    def source(self, name: str) -> str:
        """Who said this field: "given", "default", "generation_config.json", …"""
        return self.sources.get(name, "given" if self.is_set(name) else "default")


def _join(parts: list[tuple[str, str]]) -> str:
    """'a, b (source), c (another)' of (text, source) pairs."""
    groups = groupby(parts, lambda part: part[1])
    return ", ".join(f"{', '.join(text for text, _ in group)} ({source})" for source, group in groups)


def _show(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    if name == "stop" and isinstance(value, str):
        return (value,)
    raise InputError(f"{name} must be a list, got {value!r}")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _whole(name: str, value: Any, low: int, high: int, also: str = "") -> None:
    if not _is(value, Integral) or not low <= value <= high:
        raise InputError(f"{name} must be {also}a whole number from {low} to {high}, got {value!r}")


def _number(name: str, value: Any, low: float, high: float, also: str = "") -> None:
    if not _is(value, Real) or not low <= value <= high:  # a NaN is in no range
        raise InputError(f"{name} must be {also}a number from {low:g} to {high:g}, got {value!r}")
