"""What acts on the scores of the next token before it is chosen. V  vocabulary

Which there are, what each does and in which order is transformers' (`_get_logits_processor`), and beside them the
OpenAI API's penalties and biases; a test holds each to its own. Greedy answers and samples give their logits, a beam
search its log-probabilities, as there.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.generate.settings import Settings

Processor = Callable[[Tensor, Sequence[int]], Tensor]


def processors(settings: Settings, prompt: int, limit: int) -> list[Processor]:
    """Those that these settings need for an answer of at most `limit` tokens behind a prompt of `prompt` (all counted
    as the decoder reads them): each takes scores [V] and the ids so far and gives new scores [V]."""
    wish, ends = settings, [(i,) for i in settings.stop_tokens]
    words = tuple(word for word in wish.bad_words if word not in ends)
    least = max(wish.min_length, prompt + wish.min_tokens)
    second = prompt == 1 and wish.forced_first is not None
    found: list[tuple[object, Processor]] = [
        (wish.repetition_penalty != 1, Repetition(wish.repetition_penalty)),
        (wish.presence_penalty or wish.frequency_penalty, Said(prompt, wish.presence_penalty, wish.frequency_penalty)),
        (wish.logit_bias, Bias(wish.logit_bias)),
        (wish.no_repeat_ngram, NoRepeat(wish.no_repeat_ngram)),
        (words, BadWords(words)),
        (wish.ends and least > prompt, AtLeast(least, wish.ends)),
        (second, Forced(1, (wish.forced_first or 0,))),
        (wish.forced_last, Forced(prompt + limit - 1, wish.forced_last)),
        (wish.suppress, Suppressed(wish.suppress)),
        (wish.suppress_first, SuppressedAt(prompt + second, wish.suppress_first)),
    ]
    return [processor for needed, processor in found if needed]


@dataclass(frozen=True)
class Repetition:
    """Scores of the ids so far divided by the penalty, negative ones multiplied (arXiv 1909.05858)."""

    penalty: float

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        seen = torch.tensor(list(set(ids)), device=scores.device)
        values = scores[seen]
        return scores.index_copy(0, seen, torch.where(values < 0, values * self.penalty, values / self.penalty))


@dataclass(frozen=True)
class Said:
    """Off the score of each id that stands behind the prompt: `presence`, and `frequency` for each time it does."""

    prompt: int
    presence: float
    frequency: float

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        counts = Counter(ids[self.prompt :])
        if not counts:
            return scores
        penalties = [self.presence + self.frequency * count for count in counts.values()]
        return scores.index_add(0, _index(counts, scores), -scores.new_tensor(penalties))


@dataclass(frozen=True)
class Bias:
    """A number added to the score of each of these ids."""

    biases: tuple[tuple[int, float], ...]

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        ids, values = zip(*self.biases, strict=True)
        return scores.index_add(0, _index(ids, scores), scores.new_tensor(values))


@dataclass(frozen=True)
class NoRepeat:
    """No run of `size` tokens twice (arXiv 1705.04304, §2.5)."""

    size: int

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        last = self.size - 1
        begun, starts = ids[len(ids) - last :], range(len(ids) - last)
        return banned(scores, {ids[i + last] for i in starts if ids[i : i + last] == begun})


@dataclass(frozen=True)
class BadWords:
    """No such sequence is completed."""

    words: tuple[tuple[int, ...], ...]

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        begun = (word for word in self.words if len(word) == 1 or tuple(ids[1 - len(word) :]) == word[:-1])
        return banned(scores, {word[-1] for word in begun})


@dataclass(frozen=True)
class AtLeast:
    """None of `ends` before there are `length` ids."""

    length: int
    ends: tuple[int, ...]

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        return banned(scores, self.ends) if len(ids) < self.length else scores


@dataclass(frozen=True)
class Forced:
    """Behind `length` ids one of these, each with score 0."""

    length: int
    tokens: tuple[int, ...]

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        if len(ids) != self.length:
            return scores
        return torch.full_like(scores, -torch.inf).index_fill(0, _index(self.tokens, scores), 0.0)


@dataclass(frozen=True)
class Suppressed:
    """Never one of these."""

    tokens: tuple[int, ...]

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        return banned(scores, self.tokens)


@dataclass(frozen=True)
class SuppressedAt:
    """Not one of these behind `length` ids."""

    length: int
    tokens: tuple[int, ...]

    def __call__(self, scores: Tensor, ids: Sequence[int]) -> Tensor:
        return banned(scores, self.tokens) if len(ids) == self.length else scores


def banned(scores: Tensor, tokens: Sequence[int] | set[int]) -> Tensor:
    """scores [V] with −∞ for these."""
    return scores.index_fill(0, _index(tokens, scores), -torch.inf) if tokens else scores


def _index(tokens: Collection[int], scores: Tensor) -> Tensor:
    return torch.tensor(list(tokens), device=scores.device)
