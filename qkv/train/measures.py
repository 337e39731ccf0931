"""Which metrics fit an objective and its records, and which of them decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from qkv.train import recipe
from qkv.train.answering import answers_of
from qkv.train.classify import ClassifyTexts
from qkv.train.objective import Objective
from qkv.train.predictions import Asked, Predicted, answered, compared, labelled, paired, tagged
from qkv.train.records import Placed
from qkv.train.written import ROUGE, continued, translated


@dataclass(frozen=True)
class Measures:
    """What an objective is measured by. losses: by its loss alone; predicted: by predictions; usual: what is reported
    if nobody says; best: what decides."""

    losses: tuple[str, ...]
    predicted: tuple[str, ...]
    usual: tuple[str, ...]
    best: str
    predict: Callable[[Asked], Predicted] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.losses, *self.predicted)


_NLL = ("loss", "perplexity")


def measures_of(objective: Objective, records: Sequence[Placed]) -> Measures:
    """What fits an objective and its records."""
    match objective.settings:
        case recipe.ClassifyTexts():
            return _of_labels(cast(ClassifyTexts, objective))
        case recipe.TagWords():
            spans = ("span_f1", "span_precision", "span_recall")
            return Measures(("loss",), (*spans, "accuracy"), ("loss", *spans, "accuracy"), "span_f1", tagged)
        case recipe.AnswerSpan():
            more = tuple(f"{half}_{name}" for half in ("HasAns", "NoAns") for name in ("exact", "f1"))
            some = () if all(answers_of(placed.record) for placed in records) else more
            return Measures(("loss",), ("exact", "f1", *some), ("loss", "exact", "f1", *some), "f1", answered)
        case recipe.Contrast():
            if all(
                placed.record.get("score") is not None for placed in records
            ):  # then not all are pairs to learn from
                return Measures((), ("spearman", "pearson"), ("spearman", "pearson"), "spearman", compared)
            return Measures(("loss",), ("accuracy",), ("loss", "accuracy"), "loss", paired)
        case recipe.Translate():
            return Measures(_NLL, ("bleu", "chrf", *ROUGE), (*_NLL, "bleu", "chrf"), "loss", translated)
        case recipe.Causal():
            return Measures(_NLL, (), _NLL, "loss", continued)
        case recipe.Masked(next_sentence=True):
            return Measures(("loss",), (), ("loss",), "loss")
    return Measures(_NLL, (), _NLL, "loss")


def _of_labels(objective: ClassifyTexts) -> Measures:
    if objective.settings.problem == "regression":
        usual: tuple[str, ...] = ("spearman", "pearson", "mse")
    elif objective.settings.problem == "multi":
        usual = ("f1_micro", "accuracy")
    else:
        usual = ("accuracy", "f1_macro", "matthews", *(("f1",) if len(objective.labels) == 2 else ()))
    return Measures(("loss",), usual, ("loss", *usual), usual[0], labelled)
