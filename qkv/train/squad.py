"""Exact match and F1 of answers as SQuAD's own evaluate-v2.0.py counts them (arXiv 1806.03822).

An answer is compared without case, punctuation (ASCII's) and the articles a, an, the. A question without an answer has
the one right answer "". Where several answers are right, the best counts.
"""

import collections
import re
import string
from collections.abc import Sequence

from qkv.errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Small letters, no punctuation, no articles, single spaces: in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(truth: str, found: str) -> float:
    """1 where both are the same when normalized."""
    return float(normalize(truth) == normalize(found))


def overlap(truth: str, found: str) -> float:
    """F1 of the words that they share. Where one has no word: 1 if neither has."""
    a, b = normalize(truth).split(), normalize(found).split()
    if not a or not b:
        return float(a == b)
    shared = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * shared / (len(a) + len(b))


def score(truths: Sequence[Sequence[str]], found: Sequence[str]) -> dict[str, float]:
    """`exact` and `f1` in 0..100 of all questions, and as far as there are such of those that have an answer
    (`HasAns_…`) and of those that haven't (`NoAns_…`). `truths`: each question's right answers. InputError: another
    number of answers found, or no question."""
    if len(truths) != len(found) or not truths:
        raise InputError(f"{len(truths)} questions and {len(found)} answers: there must be as many, and at least one")
    rows = [_best(own, one) for own, one in zip(truths, found, strict=True)]
    values = _means(rows, "")
    for prefix, answered in (("HasAns_", True), ("NoAns_", False)):
        values |= _means([row for row, own in zip(rows, truths, strict=True) if bool(own) is answered], prefix)
    return values


def _best(truths: Sequence[str], found: str) -> tuple[float, float]:
    """Over the answers of which something is left when normalized; over "" where there are none."""
    right = [truth for truth in truths if normalize(truth)] or [""]
    return max(exact(truth, found) for truth in right), max(overlap(truth, found) for truth in right)


def _means(rows: Sequence[tuple[float, float]], prefix: str) -> dict[str, float]:
    if not rows:
        return {}
    em, f1 = (100 * sum(column) / len(rows) for column in zip(*rows, strict=True))
    return {f"{prefix}exact": em, f"{prefix}f1": f1}
