"""From logits to a token. V  vocabulary    K  tokens still in the running

After what `processors` does come temperature, top-k, top-p and min-p, in transformers' order. A test holds what they
keep and its probabilities to transformers' own.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import InputError, WeightError
from qkv.generate.processors import processors
from qkv.generate.settings import Settings


@dataclass(slots=True)
class Choice:
    """A token, its log-probability by the model itself, and the likeliest ids with theirs, best first."""

    token: int
    logprob: float | None = None
    top: dict[int, float] | None = None


class Sampler:
    """Chooses the tokens of one sequence. Its draws depend on the seed and on how many were made.

    `prompt`: tokens before the first one; `limit`: at most so many are made."""

    def __init__(self, settings: Settings, prompt: int, limit: int) -> None:
        self.settings = settings
        self.processors = processors(settings, prompt, limit)
        self.seed = _seed(settings)
        self.made = 0

    def choose(self, logits: Tensor, ids: Sequence[int]) -> Choice:
        """logits [V] → the token that comes behind ids. WeightError: the largest is NaN or infinite, so no choice has
        a meaning. InputError: the settings forbid every token."""
        scores = logits.float()
        for process in self.processors:
            scores = process(scores, ids)
        value, token = likeliest(scores)
        if not math.isfinite(value):
            raise nothing_to_choose(value, logits, self.made + 1)
        if self.seed is not None:
            token = self._draw(scores, self.seed)
        self.made += 1
        return Choice(token, *log_probabilities(logits, token, self.settings.logprobs))

    def _draw(self, scores: Tensor, seed: int) -> int:
        """The largest of p / noise with exponential noise falls on each token with probability p (the Gumbel-max
        trick). Unlike a point on the cumulated probabilities, it hardly ever moves with rounding errors in p."""
        ids, p = distribution(scores, self.settings)
        return int(ids[likeliest(p / exponential(seed, self.made, ids))[1]])


def nothing_to_choose(value: float, logits: Tensor, count: int) -> InputError | WeightError:
    """What to raise where the best score for an answer's token number `count` is `value`, of these logits."""
    if value == -math.inf and math.isfinite(float(logits.max())):
        return InputError(
            f"nothing is left for token {count} of the answer: suppress, suppress_first, bad_words, no_repeat_ngram,"
            " min_tokens and the grammar, if there is one, forbid the whole vocabulary"
        )
    return WeightError(
        f"the model's logits are not numbers any more (token {count} of the answer): its weights hold"
        " NaN or infinity, or its dtype is too narrow for it; look with `qkv verify`, or load it in float32"
    )


def likeliest(scores: Tensor) -> tuple[float, int]:
    """The largest of scores [K] and the first place that has it; NaN counts as larger than all.

    numpy's argmax uses the CPU's vector units and torch's doesn't (7 against 119 µs for 49,152 scores, torch 2.13)."""
    place = int(scores.numpy().argmax() if scores.device.type == "cpu" else scores.argmax())
    return float(scores[place]), place


def distribution(scores: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """scores [V] → the ids that may be drawn [K], ascending, and their probabilities [K]. Nothing of the whole
    vocabulary's size is sorted."""
    scores = scores / settings.temperature
    if 0 < settings.top_k < len(scores):
        ids = top(scores, settings.top_k)
        scores = scores[ids]
    else:
        ids = torch.arange(len(scores), device=scores.device)
    p = scores.softmax(0)
    if settings.top_p < 1:
        kept = nucleus(scores, p, settings.top_p)
        ids, p = ids[kept], p[kept]
    if settings.min_p > 0:
        kept = p >= settings.min_p * p.max()
        ids, p = ids[kept], p[kept]
    return ids, p / p.sum()


def top(scores: Tensor, k: int) -> Tensor:
    """The ids, ascending, of the k largest of scores [V] and of all that tie with the last of them; k < V."""
    values, ids = scores.topk(k + 1)
    if values[k] < values[k - 1]:
        return ids[:k].sort().values
    return (scores >= values[k]).nonzero()[:, 0]


def nucleus(scores: Tensor, p: Tensor, top_p: float) -> Tensor:
    """Places, ascending, of the fewest tokens whose p [K] come to top_p; of those that tie at the border the later.

    All tokens below (1 − top_p) / K come to less than 1 − top_p together, so none of them belongs: only the rest is
    sorted. (The threshold is a hair lower, so that rounding never empties it.)"""
    likely = p >= (1 - top_p) / len(p) * 0.999
    places = likely.nonzero()[:, 0]
    places = places[scores[places].argsort(stable=True)]
    below = p[places].cumsum(0) + p.masked_fill(likely, 0).sum()
    keep = below > 1 - top_p
    keep[-1] = True
    return places[keep].sort().values


GAMMA, MIX_1, MIX_2 = (n - 2**64 for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def exponential(seed: int, step: int, ids: Tensor) -> Tensor:
    """Exponential noise, float64 [K], for token ids [K]: a function of seed, step and id alone.

    A generator's state would depend on how many tokens were in the running before, which a rounding error can change.
    This is SplitMix64 (Steele, Lea and Flood 2014), whose n-th output needs no other: the id is n."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest()
    z = (ids * GAMMA).add_(int.from_bytes(digest, "little", signed=True))
    z = _fold(_fold(_fold(z, 30).mul_(MIX_1), 27).mul_(MIX_2), 31)
    uniform = _shift(z, 12).double().add_(0.5).mul_(2.0**-52)  # 52 bits: 1 itself would be drawn from 53
    return uniform.log_().neg_()


def _fold(z: Tensor, bits: int) -> Tensor:
    """z ^ (z >> bits), in place."""
    return z.bitwise_xor_(_shift(z, bits))


def _shift(z: Tensor, bits: int) -> Tensor:
    """z >> bits of int64 as if it were unsigned."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def log_probabilities(logits: Tensor, token: int, wanted: bool | int) -> tuple[float | None, dict[int, float] | None]:
    """log softmax of logits [V] at the token and, for a number n, at the n likeliest (fewer if fewer are possible)."""
    if wanted is False:
        return None, None
    logp = logits.float().log_softmax(0)
    if wanted is True:
        return float(logp[token]), None
    values, ids = logp.topk(min(int(wanted), len(logp)))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return float(logp[token]), {i: value for i, value in pairs if value > -math.inf}


def _seed(settings: Settings) -> int | None:
    """None while greedy; else the given seed, or one from torch's global generator."""
    if settings.temperature == 0:
        return None
    return settings.seed if settings.seed is not None else int(torch.randint(2**63 - 1, ()))
