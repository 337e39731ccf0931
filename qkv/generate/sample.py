"""From logits to a token. V  vocabulary    K  tokens still in the running

The processors and their order are transformers': repetition penalty, temperature, top-k, top-p, min-p. A test holds
what they keep and its probabilities to transformers' own.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import WeightError
from qkv.generate.settings import Settings


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, its log-probability by the model itself, and the likeliest ids with theirs, best first."""

    token: int
    logprob: float | None = None
    top: dict[int, float] | None = None


class Sampler:
    """Chooses the tokens of one sequence. Its draws depend on the seed and on how many were made."""

    def __init__(self, settings: Settings, prompt: Sequence[int], vocab: int, device: torch.device) -> None:
        self.settings = settings
        self.seed = _seed(settings)
        self.made = 0
        self.seen: Tensor | None = None
        if settings.repetition_penalty != 1:
            self.seen = torch.zeros(vocab, dtype=torch.bool, device=device)
            self.seen[torch.tensor(list(prompt), device=device)] = True

    def choose(self, logits: Tensor) -> Choice:
        """logits [V] → the next token. WeightError: the model gave no number for it (NaN or infinite)."""
        scores = logits.float()
        if self.seen is not None:
            scores = penalize(scores, self.seen, self.settings.repetition_penalty)
        value, token = self._greedy(scores) if self.seed is None else self._draw(scores, self.seed)
        if not math.isfinite(value):
            raise WeightError(
                f"the model's logits are not numbers any more (token {self.made + 1} of the answer): its weights hold"
                " NaN or infinity, or its dtype is too narrow for it; look with `qkv verify`, or load it in float32"
            )
        self.made += 1
        if self.seen is not None:
            self.seen[token] = True
        return Choice(token, *log_probabilities(logits, token, self.settings.logprobs))

    def _greedy(self, scores: Tensor) -> tuple[float, int]:
        value, token = scores.max(0)
        return float(value), int(token)

    def _draw(self, scores: Tensor, seed: int) -> tuple[float, int]:
        """The largest of p / noise with exponential noise falls on each token with probability p (the Gumbel-max
        trick). Unlike a point on the cumulated probabilities, it hardly ever moves with rounding errors in p."""
        ids, p = distribution(scores, self.settings)
        value, place = (p / exponential(seed, self.made, ids)).max(0)
        return float(value), int(ids[place])


def penalize(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """scores [V] of the seen tokens (bool [V]) divided by the penalty, negative ones multiplied (arXiv 1909.05858)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def distribution(scores: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """scores [V] → the ids that may be drawn [K], ascending, and their probabilities [K]. Nothing of the whole
    vocabulary's size is sorted."""
    scores = scores / settings.temperature
    ids = torch.arange(len(scores), device=scores.device)
    if 0 < settings.top_k < len(scores):
        # Not topk's own indices: they'd leave out some of those that tie with the last.
        ids = (scores >= scores.topk(settings.top_k).values[-1]).nonzero()[:, 0]
    p = scores[ids].softmax(0)
    if settings.top_p < 1:
        kept = nucleus(scores[ids], p, settings.top_p)
        ids, p = ids[kept], p[kept]
    if settings.min_p > 0:
        kept = p >= settings.min_p * p.max()
        ids, p = ids[kept], p[kept]
    return ids, p / p.sum()


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
    z = ids * GAMMA + int.from_bytes(digest, "little", signed=True)
    z = (z ^ _shift(z, 30)) * MIX_1
    z = (z ^ _shift(z, 27)) * MIX_2
    uniform = (_shift(z ^ _shift(z, 31), 12).double() + 0.5) * 2.0**-52
    return -uniform.log()


def _shift(z: Tensor, bits: int) -> Tensor:
    """z >> bits of int64 as if it were unsigned."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


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
