"""How good predictions are, by the measures that papers report. Counting is ours; spans, BLEU, chrF and ROUGE are what
seqeval, sacrebleu and rouge-score say, so that figures compare.

Shares (accuracy, F1, correlations, ROUGE) lie in 0..1 or −1..1; BLEU, chrF and SQuAD's in 0..100, as their own scripts
print them.
"""

import math
import warnings
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qkv.errors import InputError

Average = Literal["binary", "macro", "micro"]
Better = Literal["max", "min"]

_SPANS = ("precision", "recall", "f1")
_LOWER = frozenset({"loss", "perplexity", "bits_per_byte", "mse"})


def better(metric: str) -> Better:
    """Which way is better."""
    return "min" if metric in _LOWER else "max"


class Scored(NamedTuple):
    """A score, and how it was counted, for whoever counts again."""

    value: float
    signature: str


# --- labels ---------------------------------------------------------------------------------------------------------


def accuracy(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """The share of predictions that are right. InputError: none, or another number of them."""
    _check(truth, predicted)
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)


def f1(
    truth: Sequence[Hashable],
    predicted: Sequence[Hashable],
    average: Average = "macro",
    positive: Hashable | None = None,
) -> float:
    """The harmonic mean of precision and recall: of the label `positive` ("binary"), the mean of all labels' that occur
    ("macro"), or of all counts together ("micro"). 0 where a label is neither there nor predicted rightly."""
    _check(truth, predicted)
    if average == "micro":
        return accuracy(truth, predicted)  # each wrong one is a false positive and a false negative
    if average == "binary":
        return _f1_of(truth, predicted, positive)
    labels = dict.fromkeys([*truth, *predicted])
    return sum(_f1_of(truth, predicted, label) for label in labels) / len(labels)


def f1_of_sets(truth: Sequence[Sequence[Hashable]], predicted: Sequence[Sequence[Hashable]]) -> float:
    """Micro F1 where any number of labels apply to each text."""
    _check(truth, predicted)
    hits = sum(len(set(a) & set(b)) for a, b in zip(truth, predicted, strict=True))
    return _harmonic(hits, sum(map(len, map(set, predicted))), sum(map(len, map(set, truth))))


def matthews(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Matthews' correlation of any number of classes (Gorodkin 2004): 1 all right, 0 chance, or nothing to tell apart.

    R = (c·s − Σ pₖtₖ) / √((s² − Σ pₖ²)(s² − Σ tₖ²))."""
    _check(truth, predicted)
    labels = {label: i for i, label in enumerate(dict.fromkeys([*truth, *predicted]))}
    t = np.bincount([labels[a] for a in truth], minlength=len(labels)).astype(float)
    p = np.bincount([labels[a] for a in predicted], minlength=len(labels)).astype(float)
    right, total = sum(a == b for a, b in zip(truth, predicted, strict=True)), len(truth)
    spread = (total**2 - p @ p) * (total**2 - t @ t)
    return float((right * total - p @ t) / math.sqrt(spread)) if spread > 0 else 0.0


def _f1_of(truth: Sequence[Hashable], predicted: Sequence[Hashable], label: Hashable) -> float:
    hits = sum(a == b == label for a, b in zip(truth, predicted, strict=True))
    return _harmonic(hits, sum(b == label for b in predicted), sum(a == label for a in truth))


def _harmonic(hits: int, found: int, there: int) -> float:
    return 2 * hits / (found + there) if found + there else 0.0


# --- numbers --------------------------------------------------------------------------------------------------------


def pearson(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side doesn't vary."""
    _check(truth, predicted)
    a, b = (np.asarray(side, float) - np.mean(side) for side in (truth, predicted))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def spearman(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's correlation of the ranks; equal values have the mean of their ranks."""
    _check(truth, predicted)
    return pearson(_ranks(truth), _ranks(predicted))


def mean_squared_error(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """The mean of the squared differences."""
    _check(truth, predicted)
    return float(np.mean((np.asarray(truth, float) - np.asarray(predicted, float)) ** 2))


def _ranks(values: Sequence[float]) -> Any:
    array: NDArray[np.float64] = np.asarray(values, float)
    _, place, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[place]


# --- spans ----------------------------------------------------------------------------------------------------------


def span_f1(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole spans, by seqeval (conlleval's rules): right are those with the same words and
    the same label. `truth`, `predicted`: the tags of each text. InputError: other lengths, no seqeval."""
    _check(truth, predicted)
    for i, (a, b) in enumerate(zip(truth, predicted, strict=True)):
        if len(a) != len(b):
            raise InputError(f"text {i} has {len(a)} tags and {len(b)} predicted ones")
    try:
        from seqeval import metrics
    except ImportError as error:
        raise missing("seqeval", "span F1") from error
    with warnings.catch_warnings():  # that a tag has no B- or I-, and that there is nothing to divide by
        warnings.simplefilter("ignore")
        right, found = ([list(tags) for tags in side] for side in (truth, predicted))
        scores = {name: getattr(metrics, f"{name}_score")(right, found, zero_division=0) for name in _SPANS}
    return {f"span_{name}": float(score) for name, score in scores.items()}


# --- texts ----------------------------------------------------------------------------------------------------------


def perplexity(nll: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood (nats) of a token. It depends on what the tokenizer calls one. Beyond
    what a float holds: infinity."""
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf


def bits_per_byte(nll: float, size: int) -> float:
    """The negative log-likelihood of a whole text in bits, over its bytes in UTF-8: models with different tokenizers
    compare by it."""
    return nll / math.log(2) / size


def bleu(references: Sequence[str], found: Sequence[str]) -> Scored:
    """Corpus BLEU by sacrebleu (arXiv 1804.08771), one reference a text, with its signature. InputError: no sacrebleu,
    which is needed for `chrf` too."""
    return _sacrebleu("BLEU", references, found)


def chrf(references: Sequence[str], found: Sequence[str]) -> Scored:
    """Corpus chrF2 by sacrebleu, with its signature."""
    return _sacrebleu("CHRF", references, found)


def _sacrebleu(kind: str, references: Sequence[str], found: Sequence[str]) -> Scored:
    _check(references, found)
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise missing("sacrebleu", "BLEU and chrF") from error
    metric = getattr(metrics, kind)()
    return Scored(float(metric.corpus_score(list(found), [list(references)]).score), str(metric.get_signature()))


def rouge(references: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, the mean F-measure of all texts, by rouge-score without stemming. InputError: it isn't
    installed."""
    _check(references, found)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing("rouge-score", "ROUGE") from error
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(names)
    scores = [scorer.score(a, b) for a, b in zip(references, found, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def check_installed(names: Collection[str]) -> None:
    """InputError: a package that one of these metrics is counted by isn't installed."""
    if any(name.startswith("span_") for name in names):
        span_f1([["O"]], [["O"]])
    for start, count in (("bleu", bleu), ("chrf", chrf), ("rouge", rouge)):
        if any(name.startswith(start) for name in names):
            count(["a"], ["a"])


def missing(package: str, what: str) -> InputError:
    """The error where a package isn't installed."""
    return InputError(f"{what} needs {package}: pip install 'qkv[train]'")


def _check(truth: Sequence[Any], predicted: Sequence[Any]) -> None:
    if len(truth) != len(predicted) or not len(truth):
        raise InputError(f"{len(truth)} right ones and {len(predicted)} predicted: there must be as many, and some")
