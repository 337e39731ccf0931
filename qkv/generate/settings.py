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
from typing import Any, Literal

from qkv.errors import ConfigError, InputError
from qkv.generate import check, describe
from qkv.generate.generation_config import FILE, read_generation_config

MOST_STOPS, LONGEST_STOP, MOST_STOP_TOKENS = 64, 1024, 1024  # each is looked for after every token
MOST_BEAMS = 1024
MOST_GUESSES = 1024  # at once
MOST_IDS = 2**16  # that a list may forbid
MOST_BIASES, LARGEST_BIAS = 1024, 100.0
SAMPLING = ("top_k", "top_p", "min_p")
SEARCHING = ("length_penalty", "early_stopping")
LIFTS = {"max_tokens": "max_length", "min_tokens": "min_length", "beams": "n_best"}  # the one takes back the other
IDS = ("suppress", "suppress_first", "forced_last", "stop_tokens")


@dataclass(frozen=True)
class Settings:
    """How to go on after a prompt. InputError names the field that is wrong.

    max_tokens: at most this many new ones; None: as many as the context holds.
    max_length: at most this many in all, the prompt's included (of an encoder–decoder: the decoder's, its start token
        included); transformers' older limit. None: not limited so.
    temperature: 0 is greedy: the most likely token each time. Else logits are divided by it.
    top_k: draw from the k most likely (all that tie with the last of them too); 0: from all.
    top_p: draw from the fewest tokens whose probabilities come to top_p (arXiv 1904.09751); 1: from all.
    min_p: draw from those at least min_p as likely as the likeliest (arXiv 2407.01082); 0: from all.
    repetition_penalty: tokens of the prompt and the text so far have positive logits divided by it and negative ones
        multiplied (arXiv 1909.05858); 1: none. It acts on greedy decoding too.
    presence_penalty: taken off the logit of every token that the answer already has, as OpenAI's API; 0: none.
    frequency_penalty: the same, once for each time that the answer has it. (The prompt counts for neither.)
    logit_bias: {id: what is added to its logit}; −100 all but forbids a token, 100 all but forces it.
    seed: each prompt's draws depend on it, the token's number and nothing else, so a prompt's text is the same alone,
        in a batch and in any order. None: one for each prompt from torch's global generator; the Generation says it.
    stop: texts that end the answer; they are not part of it.
    stop_tokens: ids that end the answer (the eos). They are in `tokens` and not in `text`.
    ignore_eos: read on past stop_tokens, to fill a length or to measure speed.
    logprobs: True: log-probabilities of the chosen tokens; n ≥ 1: and of the n likeliest at each place. They are
        those of the model, before penalty, temperature and truncation.
    lookup: prompt lookup: guess what comes from what came before, up to this many tokens a step (True: 8), and have the
        model confirm it. The answer is the same, sooner where it repeats its prompt (`speculate`). False: no guesses.
    allow_long: go beyond the context that the model was trained on, where its positions can.
    prefill_chunk: tokens that one step reads, of all prompts together; it bounds memory, the answer is the same. An
        encoder reads so many at once, and at least one whole prompt. Guesses are read in what room a step has left.
    beams: above 1 a beam search of that width (temperature must be 0).
    length_penalty: a found text's score is its summed log-probability / (its number of tokens)^length_penalty.
    early_stopping: when a search ends that has found `beams` texts. True: at once; False: when the best one still open
        would score no better at its present length; "never": nor at the greatest length there is.
    n_best: texts to return of a beam search, best first.
    min_tokens: no stop_tokens before so many new tokens; min_length: in all, counted as max_length.
    forced_first: the first new token where there is only one before it (an encoder–decoder's start).
    forced_last: the last token that the limit leaves room for, one of these.
    suppress: ids that are never chosen; suppress_first: not as the first new one (or the first after forced_first).
    no_repeat_ngram: no run of so many tokens occurs twice, the prompt of a decoder included; 0: any may.
    bad_words: sequences of ids that may not come up; stop_tokens alone are no such words.
    renormalize: in a beam search what all of the above leave is brought to probabilities again before it is summed.
    start: the token that an encoder–decoder's answer begins behind; None: the one of its config.
    """

    max_tokens: int | None = 256
    max_length: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool | int = False
    lookup: bool | int = False
    allow_long: bool = False
    prefill_chunk: int = 512
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    n_best: int = 1
    min_tokens: int = 0
    min_length: int = 0
    forced_first: int | None = None
    forced_last: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    renormalize: bool = False
    start: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, one in (("stop", str), ("forced_last", int), *((n, None) for n in (*IDS, "bad_words"))):
            object.__setattr__(self, name, check.tuple_of(name, getattr(self, name), one))
        words = tuple(check.tuple_of("bad_words", word) for word in self.bad_words)
        object.__setattr__(self, "bad_words", words)
        object.__setattr__(self, "logit_bias", check.biases("logit_bias", self.logit_bias, MOST_BIASES, LARGEST_BIAS))
        self._check_numbers()
        self._check_lists()
        self._check_search()

    def _check_numbers(self) -> None:
        for name, low, high in (
            *(("max_tokens", 1, 2**63 - 1), ("max_length", 1, 2**63 - 1), ("seed", 0, 2**63 - 1)),
            *(("forced_first", 0, check.LARGEST_ID), ("start", 0, check.LARGEST_ID)),
        ):
            if getattr(self, name) is not None:
                check.whole(name, getattr(self, name), low, high)
        for name, low in (("prefill_chunk", 1), ("top_k", 0), ("min_tokens", 0), ("min_length", 0)):
            check.whole(name, getattr(self, name), low, 2**31 - 1)
        check.whole("no_repeat_ngram", self.no_repeat_ngram, 0, 2**31 - 1)
        if self.temperature != 0 or isinstance(self.temperature, bool):
            # Below, logits / temperature overflows float32; above, it says nothing any more.
            check.number("temperature", self.temperature, 1e-6, 1e6, "0 (greedy) or ")
        check.number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InputError("top_p must be above 0 (temperature 0 is greedy), got 0")
        check.number("min_p", self.min_p, 0.0, 1.0)
        check.number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        check.number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check.number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for name in ("ignore_eos", "allow_long", "renormalize"):
            check.flag(name, getattr(self, name))
        if not isinstance(self.logprobs, bool):
            check.whole("logprobs", self.logprobs, 1, check.LARGEST_ID, "False, True or ")
        if not isinstance(self.lookup, bool):
            check.whole("lookup", self.lookup, 1, MOST_GUESSES, "False, True or ")

    def _check_lists(self) -> None:
        if len(self.stop) > MOST_STOPS:
            raise InputError(f"stop may hold {MOST_STOPS} texts, got {len(self.stop)}")
        check.texts("stop", self.stop, LONGEST_STOP)
        for name, most in zip(IDS, (MOST_IDS, MOST_IDS, MOST_STOP_TOKENS, MOST_STOP_TOKENS), strict=True):
            check.ids(name, getattr(self, name), most)
        check.ids("bad_words", tuple(i for word in self.bad_words for i in word), MOST_IDS)
        for name in ("forced_first", "forced_last"):
            forced = {getattr(self, name)} if name == "forced_first" else set(self.forced_last)
            if forced and forced <= set(self.suppress):
                raise InputError(f"{name} and suppress name the same tokens: there would be nothing left to choose")
        if not all(self.bad_words):
            raise InputError("bad_words must hold lists of token ids, got an empty one")

    def _check_search(self) -> None:
        check.whole("beams", self.beams, 1, MOST_BEAMS)
        # Beyond this the power of a long text's length leaves float32.
        check.number("length_penalty", self.length_penalty, -8.0, 8.0)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise InputError(f"early_stopping must be True, False or 'never', got {self.early_stopping!r:.80}")
        check.whole("n_best", self.n_best, 1, MOST_BEAMS)
        if self.n_best > self.beams:
            raise InputError(f"n_best must be at most beams, which is {self.beams}, got {self.n_best}")
        if self.beams > 1 and self.lookup:
            raise InputError(
                f"a search of {self.beams} beams ({self.source('beams')}) guesses nothing: give beams=1, or no lookup"
            )
        if self.beams > 1 and self.temperature != 0:
            raise InputError(
                f"a search of {self.beams} beams ({self.source('beams')}) and drawing at temperature"
                f" {self.temperature:g} ({self.source('temperature')}) at once is not done here: give temperature=0 or"
                " beams=1"
            )

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

        ConfigError: the file asks for something that changes the answer and isn't done here (contrastive search,
        watermarks, …) or for something unknown; `without` names such keys to do without. InputError: a wrong change."""
        said, sources = read_generation_config(generation or {}, without)
        sources = {name: source.replace(FILE, origin) for name, source in sources.items()}
        if eos and "stop_tokens" not in said:
            said["stop_tokens"], sources["stop_tokens"] = tuple(eos), "tokenizer"
        changed = {*changes, *(LIFTS[name] for name in changes if name in LIFTS)}
        try:
            settings = cls(**{name: value for name, value in said.items() if name not in changed}, sources=sources)
        except InputError as error:
            raise ConfigError(f"{FILE}: {error}") from error
        return settings.replace(**changes)

    def replace(self, **changes: Any) -> "Settings":
        """These settings with some fields changed. Asking for max_tokens lifts max_length, as in transformers, for
        min_tokens min_length, and for beams n_best.

        InputError: no such field; a wrong value; top_k, top_p or min_p for a greedy answer, or length_penalty or
        early_stopping for one beam, which they don't change."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "sources"]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1, 0.5) or [", ".join(names)]
                raise InputError(f"generate has no argument {name!r}; did you mean {near[0]}?")
        lifted = {LIFTS[name] for name in changes if name in LIFTS} - set(changes)
        changes = {**{name: type(self).__dataclass_fields__[name].default for name in lifted}, **changes}
        new = dataclasses.replace(self, **changes, sources={**self.sources, **dict.fromkeys(changes, "given")})
        for name in SAMPLING:
            if name in changes and "temperature" not in changes and new.temperature == 0 and new.is_set(name):
                raise InputError(f"{name} changes nothing while temperature is 0 (greedy); give a temperature too")
        for name in SEARCHING:
            if name in changes and "beams" not in changes and new.beams == 1 and new.is_set(name):
                raise InputError(f"{name} changes nothing while beams is 1 (no beam search); give beams too")
        return new

    def is_set(self, name: str) -> bool:
        """Is this field another than its default?"""
        return bool(getattr(self, name) != type(self).__dataclass_fields__[name].default)

    def describe(self) -> str:
        """One line for a person: what is in force, and who said so."""
        return describe.describe(self)

    def source(self, name: str) -> str:
        """Who said this field: "given", "default", "generation_config.json", …"""
        return self.sources.get(name, "given" if self.is_set(name) else "default")

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer, if any may."""
        return () if self.ignore_eos else self.stop_tokens
