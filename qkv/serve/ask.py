"""What is asked of an engine, and the limits of what may be: all checked here, whatever a route has checked before."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from qkv.errors import InputError
from qkv.generate import check
from qkv.generate.settings import Settings

Kind = Literal["json_schema", "json_object", "regex"]
UNSERVED = {  # settings that an engine has its own way with, and why
    "beams": "an engine searches no beams",
    "lookup": "an engine guesses nothing",
    "allow_long": "an engine's context is fixed when it starts",
    "prefill_chunk": "an engine's own budget says what a step reads",
}


class ContextExceeded(InputError):
    """A prompt, or it and the answer asked for, that is longer than what there is room for, all in tokens."""

    def __init__(self, prompt: int, asked: int | None, context: int) -> None:
        self.prompt, self.asked, self.context = prompt, asked, context
        more = "leaves no room for an answer" if asked is None else f"and max_tokens {asked} come to {prompt + asked}"
        super().__init__(f"prompt: its {prompt} tokens {more}: this model is served with a context of {context}")


@dataclass(frozen=True)
class Grammar:
    """What an answer must be: JSON that a schema allows (`source`: the schema, as JSON), any JSON object, or a text
    that a regular expression matches whole (`source`)."""

    kind: Kind
    source: str = ""


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    context: tokens of prompt and answer; of an encoder–decoder those that its decoder reads. source: tokens that an
    encoder reads (None: there is no encoder). vocab: ids are below. longest_*: characters; a grammar's are bytes."""

    context: int
    vocab: int
    source: int | None = None
    most_n: int = 8
    most_logprobs: int = 20
    most_stop: int = 4
    longest_stop: int = 256
    most_stop_tokens: int = 128
    most_bias: int = 1024
    most_ids: int = 1024
    longest_grammar: int = 65_536
    longest_name: int = 256


@dataclass(frozen=True)
class Ask:
    """A request: go on from `prompt` in `n` ways.

    id: its name, unique among those that run. prompt: ids (of an encoder–decoder: what the encoder reads). settings:
    those of one answer; answer i draws with `answer_seed(seed, i)`. n: 0 only scores the prompt. salt, tenant: prompts
    share what is cached only within one of both; tenants share the engine's time evenly. grammar: what each answer must
    be. echo_logprobs: score the prompt's tokens too, and as many of the likeliest at each place; None: don't."""

    id: str
    prompt: tuple[int, ...]
    settings: Settings
    n: int = 1
    salt: str = ""
    tenant: str = ""
    grammar: Grammar | None = None
    echo_logprobs: int | None = None

    def check(self, limits: Limits) -> None:
        """InputError: something is wrong or beyond the limits, and which field. ContextExceeded: it is too long."""
        for name in ("id", "salt", "tenant"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > limits.longest_name:
                raise InputError(f"{name} must be a text of at most {limits.longest_name} characters")
        if not self.id:
            raise InputError("id is empty")
        if self.echo_logprobs is not None:
            check.whole("echo_logprobs", self.echo_logprobs, 0, limits.most_logprobs, "None or ")
            if limits.source is not None:
                raise InputError("echo_logprobs: an encoder–decoder's prompt has no log-probabilities")
        check.whole("n", self.n, 0 if self.echo_logprobs is not None else 1, limits.most_n)
        self._check_settings(limits)
        self._check_prompt(limits)
        if self.grammar is not None:
            _check_grammar(self.grammar, limits.longest_grammar)

    def _check_settings(self, limits: Limits) -> None:
        wish = self.settings
        for name, why in UNSERVED.items():
            if wish.is_set(name):
                raise InputError(f"{name}: {why}; leave it out")
        most = {
            "stop": limits.most_stop,
            "stop_tokens": limits.most_stop_tokens,
            "logit_bias": limits.most_bias,
            **dict.fromkeys(("suppress", "suppress_first", "bad_words", "forced_last"), limits.most_ids),
        }
        for name, count in most.items():
            if wish.source(name) == "given" and len(getattr(wish, name)) > count:
                raise InputError(f"{name} may hold {count}, got {len(getattr(wish, name))}")
        if any(len(text) > limits.longest_stop for text in wish.stop):
            raise InputError(f"stop: a text of more than {limits.longest_stop} characters")
        if sum(map(len, wish.bad_words)) > limits.most_ids and wish.source("bad_words") == "given":
            raise InputError(f"bad_words may hold {limits.most_ids} ids in all")
        if not isinstance(wish.logprobs, bool) and wish.logprobs > limits.most_logprobs:
            raise InputError(f"logprobs must be at most {limits.most_logprobs}, got {wish.logprobs}")

    def _check_prompt(self, limits: Limits) -> None:
        """Its length first: what is too long isn't looked through."""
        count, wish = len(self.prompt), self.settings
        if not count:
            raise InputError("prompt is empty: there is nothing to continue")
        begin = count
        if limits.source is not None:
            begin = 1
            if count > limits.source:
                raise ContextExceeded(count, None, limits.source)
        if begin + (self.n > 0) > limits.context:
            raise ContextExceeded(count, None, limits.context)
        asked = wish.max_tokens if wish.source("max_tokens") == "given" and self.n else None
        if asked is not None and begin + asked > limits.context:
            raise ContextExceeded(begin, asked, limits.context)
        for id in self.prompt:
            check.whole("prompt: a token id", id, 0, limits.vocab - 1)


def _check_grammar(grammar: Grammar, longest: int) -> None:
    if grammar.kind not in get_args(Kind):
        raise InputError(f"grammar.kind must be one of {', '.join(get_args(Kind))}, got {grammar.kind!r:.80}")
    if not isinstance(grammar.source, str):
        raise InputError("grammar.source must be a text")
    if len(grammar.source) > longest or len(grammar.source.encode(errors="replace")) > longest:
        raise InputError(f"grammar: {grammar.kind} may have {longest} bytes")
    if bool(grammar.source) == (grammar.kind == "json_object"):
        raise InputError(f"grammar: {grammar.kind} needs {'no' if grammar.source else 'a'} source")


def answer_seed(seed: int, index: int) -> int:
    """What answer `index` of a request of this seed draws with; the first one draws as a request of one answer."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest(), "little") >> 1
