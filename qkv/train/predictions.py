"""What a model predicts of records (labels, tags, answers, vectors), as `qkv predict` and `qkv embed` would say with
the lengths of training, and what that is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qkv.nn.head import IGNORED
from qkv.nn.stack import Transformer
from qkv.tasks.answer import answer
from qkv.tasks.batches import by_length
from qkv.tasks.classify import classify
from qkv.tasks.result import Classification
from qkv.train import metrics, squad
from qkv.train.answering import AnswerSpan, answers_of
from qkv.train.classify import ClassifyTexts, names, numbers, texts_of
from qkv.train.framed import column
from qkv.train.objective import Sample
from qkv.train.records import Placed
from qkv.train.tagging import TagWords, tags_of, words_of

BUDGET = 4096  # tokens a batch
LONGEST_ANSWER = 30  # tokens, as run_squad.py has it
OUTSIDE = "O"
_NOTHING = "no answer"


@dataclass(frozen=True)
class Shown:
    """An input, what is right, and what was predicted."""

    input: str
    expected: str
    predicted: str


@dataclass(frozen=True)
class Asked:
    """Records, each with its samples; `metrics`: those that are wanted of their predictions (none: they are only to be
    shown). budget: tokens a batch."""

    model: Transformer
    objective: Any
    records: Sequence[Placed]
    samples: Sequence[Sequence[Sample]]
    metrics: Sequence[str]
    budget: int = BUDGET

    def column(self, name: str) -> list[Any]:
        """A field of each record."""
        return [placed.record.get(name) for placed in self.records]


@dataclass(frozen=True)
class Predicted:
    """Metrics by name, how they were counted, and each record's prediction."""

    values: dict[str, float]
    shown: list[Shown]
    said: dict[str, str] = field(default_factory=dict)


# --- labels ---------------------------------------------------------------------------------------------------------


def labelled(asked: Asked) -> Predicted:
    """By `qkv.tasks.classify`. f1: of the second of two labels."""
    objective: ClassifyTexts = asked.objective
    problem = objective.settings.problem
    assert objective.tokenizer is not None
    on_long = objective.settings.on_long
    texts = [tuple(texts_of(placed.record)) for placed in asked.records]
    found = classify(
        asked.model,
        objective.tokenizer,
        texts,
        on_long="error" if on_long == "drop" else on_long,  # those that are dropped aren't here
        window=objective.lengths.limit.size,
    )
    if problem == "regression":
        return _quantities(objective, asked, texts, found)
    truth = [names(label, problem) for label in asked.column("label")]
    said = [list(one.labels) for one in found]
    shown = [Shown(" | ".join(t), ", ".join(a), ", ".join(b)) for t, a, b in zip(texts, truth, said, strict=True)]
    if problem == "multi":
        sets = [frozenset(a) for a in truth], [frozenset(b) for b in said]
        return Predicted({"f1_micro": metrics.f1_of_sets(truth, said), "accuracy": metrics.accuracy(*sets)}, shown)
    right, guess = [own[0] for own in truth], [one.label for one in found]
    values = {
        "accuracy": metrics.accuracy(right, guess),
        "f1_macro": metrics.f1(right, guess, "macro"),
        "matthews": metrics.matthews(right, guess),
    }
    if len(objective.labels) == 2:
        values["f1"] = metrics.f1(right, guess, "binary", objective.labels[1])
    return Predicted(values, shown)


def _quantities(
    objective: ClassifyTexts, asked: Asked, texts: Sequence[tuple[str, ...]], found: Sequence[Classification]
) -> Predicted:
    """Of several quantities the mean over them."""
    truth = [numbers(label) for label in asked.column("label")]
    said = [[one.scores[label] for label in objective.labels] for one in found]
    measures = {"spearman": metrics.spearman, "pearson": metrics.pearson, "mse": metrics.mean_squared_error}
    columns = list(zip(zip(*truth, strict=True), zip(*said, strict=True), strict=True))
    values = {name: sum(count(a, b) for a, b in columns) / len(columns) for name, count in measures.items()}
    rows = zip(texts, truth, said, strict=True)
    return Predicted(values, [Shown(" | ".join(text), _numbers(a), _numbers(b)) for text, a, b in rows])


def tagged(asked: Asked) -> Predicted:
    """The likeliest label of each word's first token. A word that wasn't read (cut off, or without tokens) counts as
    outside."""
    objective: TagWords = asked.objective
    guess = _first_tokens(asked)
    truth, said, shown = [], [], []
    for placed, found in zip(asked.records, guess, strict=True):
        words, tags = words_of(placed.record), tags_of(placed.record)
        own = [OUTSIDE] * len(words)
        for word, label in zip(objective.read(words)[1], found, strict=False):
            own[word] = objective.labels[label]
        truth.append(tags)
        said.append(own)
        shown.append(Shown(" ".join(words), _marked(words, tags), _marked(words, own)))
    flat = ([tag for tags in side for tag in tags] for side in (truth, said))
    return Predicted({**metrics.span_f1(truth, said), "accuracy": metrics.accuracy(*flat)}, shown)


def _first_tokens(asked: Asked) -> list[list[int]]:
    """For each record the labels of its words' first tokens, in order."""
    owners = [i for i, own in enumerate(asked.samples) for _ in own]
    flat = [sample for own in asked.samples for sample in own]
    found: list[Tensor] = [torch.empty(0)] * len(flat)
    for rows in by_length([len(sample["ids"]) for sample in flat], asked.budget):
        some = [flat[row] for row in rows]
        segments = column(some, "segments") if "segments" in some[0] else None
        outs = asked.model(column(some, "ids"), segments=segments)
        for row, out, labels in zip(rows, outs, column(some, "label"), strict=True):
            found[row] = out.cpu()[labels != IGNORED].argmax(-1)
    guess: list[list[int]] = [[] for _ in asked.records]
    for owner, labels in zip(owners, found, strict=True):
        guess[owner] += labels.tolist()
    return guess


def _marked(words: Sequence[str], tags: Sequence[str]) -> str:
    return " ".join(word if tag == OUTSIDE else f"[{word}: {tag}]" for word, tag in zip(words, tags, strict=True))


# --- spans, vectors -------------------------------------------------------------------------------------------------


def answered(asked: Asked) -> Predicted:
    """By `qkv.tasks.answer`; "no answer" is one where some questions have none."""
    objective: AnswerSpan = asked.objective
    truth = [[one.text for one in answers_of(placed.record)] for placed in asked.records]
    pairs = [(placed.record["question"], placed.record["context"]) for placed in asked.records]
    most = objective.limit
    found = answer(
        asked.model,
        objective.tokenizer,
        pairs,
        max_answer=LONGEST_ANSWER,
        no_answer=not all(truth) and objective.tokenizer.cls is not None,
        window=most.size,
        stride=None if most.size is None else most.stride,
    )
    said = [one.best.text for one in found]
    rows = zip(pairs, truth, said, strict=True)
    shown = [Shown(q, " / ".join(t) or _NOTHING, s or _NOTHING) for (q, _), t, s in rows]
    return Predicted(squad.score(truth, said), shown)


def compared(asked: Asked) -> Predicted:
    """Cosines of pairs against their scores."""
    first, second = _vectors(asked, "ids"), _vectors(asked, "second")
    cosines = (first * second).sum(-1).tolist()
    truth = [numbers(score)[0] for score in asked.column("score")]
    values = {"spearman": metrics.spearman(truth, cosines), "pearson": metrics.pearson(truth, cosines)}
    rows = zip(_pairs(asked), truth, cosines, strict=True)
    return Predicted(values, [Shown(pair, f"{score:g}", f"{cosine:.3f}") for pair, score, cosine in rows])


def paired(asked: Asked) -> Predicted:
    """accuracy: the share of firsts whose own second is the nearest of all seconds (or has its very tokens)."""
    first, second = _vectors(asked, "ids"), _vectors(asked, "second")
    nearest = [int((second @ row).argmax()) for row in first]
    texts = [tuple(own[0]["second"].tolist()) for own in asked.samples]
    said = asked.column("second")
    hits = metrics.accuracy(texts, [texts[i] for i in nearest])
    rows = zip(asked.column("first"), said, nearest, strict=True)
    return Predicted({"accuracy": hits}, [Shown(text, own, said[i]) for text, own, i in rows])


def _vectors(asked: Asked, name: str) -> Tensor:
    """Float32 [records, C], of length 1."""
    ids = column([own[0] for own in asked.samples], name)
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    for rows in by_length([len(one) for one in ids], asked.budget):
        for row, vector in zip(rows, asked.model([ids[row] for row in rows]), strict=True):
            found[row] = vector.float().cpu()
    return F.normalize(torch.stack(found), dim=-1)


def _pairs(asked: Asked) -> list[str]:
    return [f"{a} | {b}" for a, b in zip(asked.column("first"), asked.column("second"), strict=True)]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
