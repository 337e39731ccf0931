"""Speculation: tokens that are guessed cheaply and confirmed by the model, several in one step.

    guess k tokens; read them in one step, which gives k + 1 logits; choose each token by the very same rule as ever;
    go on as long as the choice is what was guessed, then take back what was read beyond it

A step of one token and one of a few take almost the same time where memory is the limit, so each right guess saves one.

It is exact. Speculative sampling (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318) accepts
a guess by chance and corrects the distribution of what it rejects. Here a choice is a function of the seed, of how many
were made and of logits and ids alone (`sample`), so there is nothing to correct: a guess is right if it is the token
that is chosen there anyway. Greedy answers and, for a seed, samples are the same tokens as without, so their
distribution is the same too. (As with other batches or chunks, logits may differ in their last digits.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from qkv.errors import InputError
from qkv.generate.limits import check_generates, totals
from qkv.generate.request import Request
from qkv.generate.sample import Sampler
from qkv.generate.settings import Settings
from qkv.generate.step import Reader, new_cache
from qkv.generate.timing import Traffic
from qkv.nn.cache import Cache
from qkv.nn.stack import Transformer

MOST = 8  # tokens guessed at once where nobody says
READ = 0.25  # what one more token in a step costs, as a share of the step
FADE, RETRY = 0.7, 16


class Guess(Protocol):
    """What one sequence's guesses come from. `cost`: what guessing and reading a token takes, as a share of a step."""

    cost: float

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        """What may come behind ids, which only ever grow: at most `count` tokens, none where there is no idea."""
        ...


class Guesser(Protocol):
    """Makes a Guess for each sequence. `most`: tokens to guess at once."""

    @property
    def most(self) -> int: ...
    def begin(self, model: Transformer, request: Request, seed: int | None) -> Guess:
        """One for an answer of this model, drawn with this seed. InputError: it can't guess for it. Nothing is computed
        yet."""
        ...


class Pace:
    """How many tokens are worth guessing, as far as the last guesses tell.

    `rate`: the share of guessed tokens that were right, each guess counting FADE times as much as the next. Token j of
    a guess is right with probability rate^j (the α of Leviathan et al., §3.1) and then saves a step, so it is guessed
    while that is at least its `cost`. Once not even one is worth it, one is tried after every RETRY steps."""

    def __init__(self, most: int, cost: float) -> None:
        self.most, self.cost = most, cost
        self.right, self.tried = 1.8, 2.0  # hopeful
        self.idle = 0

    def next(self) -> int:
        """How many to guess in this step."""
        rate, count = self.right / self.tried, 0
        while count < self.most and rate ** (count + 1) >= self.cost:
            count += 1
        self.idle += count == 0
        return min(1, self.most) if self.idle >= RETRY else count

    def learn(self, guessed: int, right: int) -> None:
        """The first `right` of so many were right. What is behind a wrong one says nothing."""
        self.idle = 0
        self.right = self.right * FADE + right
        self.tried = self.tried * FADE + right + (right < guessed)


def guesser_for(settings: Settings, guesser: Guesser | None = None) -> Guesser:
    """This one, or the one that the settings ask for. InputError: both."""
    if guesser is not None and settings.lookup:
        raise InputError(f"lookup ({settings.source('lookup')}) and a draft both guess what comes: choose one")
    if guesser is not None or not settings.lookup:
        return guesser or Nothing()
    return Lookup(MOST if settings.lookup is True else settings.lookup)


class Nothing:
    """No guesses: each step gives one token."""

    most, cost = 0, 1.0

    def begin(self, model: Transformer, request: Request, seed: int | None) -> Guess:
        return self

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        return []


@dataclass(frozen=True)
class Lookup:
    """Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): what came the last time that the
    text's last tokens were there, in the prompt, an encoder's source or the answer itself. It costs no model.

    `most`: tokens to guess at once. The longest run that is found counts, of `ngram` tokens down to `least` (one token
    alone is found nearly always and says little)."""

    most: int = MOST
    ngram: int = 3
    least: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.ngram or self.most < 1:
            raise InputError(f"a lookup needs 1 ≤ least ≤ ngram and most ≥ 1, got {self}")

    def begin(self, model: Transformer, request: Request, seed: int | None) -> Guess:
        return _Looking(request.source, range(self.ngram, self.least - 1, -1))


class _Looking:
    """`ends[run]`: where the run's last occurrence ends that something stands behind. Each token is put in once."""

    cost = READ

    def __init__(self, source: Sequence[int], sizes: Sequence[int]) -> None:
        self.text, self.before, self.sizes = list(source), len(source), sizes
        self.ends: dict[tuple[int, ...], int] = {}
        self.known = 0  # runs that end before this place are in `ends`

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        self.text += ids[len(self.text) - self.before :]
        for end in range(self.known, len(self.text)):
            self.ends.update((tuple(self.text[end - n : end]), end) for n in self.sizes if n <= end)
        self.known = len(self.text)
        runs = (tuple(self.text[-n:]) for n in self.sizes if n < len(self.text))
        found = next((self.ends[run] for run in runs if run in self.ends), None)
        if found is None:
            return []
        told = self.text[found : found + count]
        while len(told) < count:  # the text repeats itself: so does the guess
            told += told[: count - len(told)]
        return told


@dataclass(frozen=True)
class Draft:
    """What a smaller model of the same vocabulary would choose, with the same settings and the same noise: so it often
    chooses the same token, in samples too. `most`: tokens to guess at once."""

    model: Transformer
    most: int = MOST

    def check(self, model: Transformer) -> None:
        """InputError: it can't guess for this model."""
        own, other = self.model.spec, model.spec
        check_generates(own)
        if own.vocab != other.vocab:
            raise InputError(f"the draft has a vocabulary of {own.vocab} tokens and the model one of {other.vocab}")
        if (own.encoder is None) != (other.encoder is None):
            raise InputError("draft and model must both have an encoder beside the decoder, or neither")
        if self.model.device != model.device:
            raise InputError(f"the draft is on {self.model.device} and the model on {model.device}: move one of them")

    def begin(self, model: Transformer, request: Request, seed: int | None) -> Guess:
        self.check(model)
        share = Traffic(self.model).weights / Traffic(model).weights
        return _Drafting(self.model, self.most, request, seed, READ + share)


class _Drafting:
    """A draft's own cache of one sequence: `held` are the ids in it."""

    def __init__(self, model: Transformer, most: int, request: Request, seed: int | None, cost: float) -> None:
        self.model, self.most, self.request, self.cost = model, most, request, cost
        self.settings = replace(request.settings, seed=seed, logprobs=False)
        self.sampler = Sampler(self.settings, len(request.prompt), request.limit)
        self.room = min((n for n, _ in totals(model.spec, self.settings)), default=None)
        self.read = Reader(model)
        self.cache: Cache | None = None
        self.held: list[int] = []

    def propose(self, ids: Sequence[int], count: int) -> list[int]:
        count = count if self.room is None else min(count, self.room - len(ids))
        text, cache = list(ids), self._back_to(ids)
        while len(text) < len(ids) + count:
            token = self._choose(self._read(text, cache), text)
            if token is None:
                break
            text.append(token)
        return text[len(ids) :]

    def _back_to(self, ids: Sequence[int]) -> Cache:
        """The cache, without what it holds of guesses that were wrong."""
        if self.cache is None:
            self.cache = new_cache(self.model, [self.request.source], None, self.settings.prefill_chunk)
            self.cache.reserve(self.most)
        same = next((i for i, (a, b) in enumerate(zip(self.held, ids, strict=False)) if a != b), len(self.held))
        if same < len(self.held):
            self.cache.truncate([same])
            del self.held[same:]
        return self.cache

    def _read(self, text: list[int], cache: Cache) -> Tensor:
        """Read what is not held yet → logits [V] behind the text."""
        while len(self.held) < len(text):
            chunk = text[len(self.held) : len(self.held) + self.settings.prefill_chunk]
            prompt = max(0, min(len(chunk), len(self.request.prompt) - len(self.held)))
            logits = self.read([chunk], cache, [1], [prompt])
            self.held += chunk
        return logits[0]

    def _choose(self, logits: Tensor, text: list[int]) -> int | None:
        """The token behind a text; None: the settings would leave none, behind a text that may never come up."""
        self.sampler.made = len(text) - len(self.request.prompt)
        try:
            return self.sampler.choose(logits, text).token
        except InputError:
            return None
