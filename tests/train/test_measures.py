"""Which metrics there are, by objective and records."""

from typing import Any

import pytest

from qkv import spec
from qkv.train import metrics, objectives, recipe
from qkv.train.measures import Measures, measures_of
from qkv.train.records import Placed
from tests.tiny import text_to_text
from tests.train.heads import encoder

NLL = ("loss", "perplexity")
ANSWER = {"context": "a b", "answers": [{"text": "a", "start": 0}]}


def of(settings: Any, head: spec.Head | None, *records: dict[str, Any]) -> Measures:
    model = encoder(head) if head is not None else text_to_text()
    assert model.tokenizer is not None
    made = objectives.make(settings, model.spec, model.tokenizer, None)
    return measures_of(made, [Placed(record, "x:1") for record in records])


@pytest.mark.parametrize(
    ("settings", "head", "names", "best"),
    [
        (
            recipe.ClassifyTexts(kind="classify"),
            spec.Classify(("a", "b")),
            ("loss", "accuracy", "f1_macro", "matthews", "f1"),
            "accuracy",
        ),
        (
            recipe.ClassifyTexts(kind="classify"),
            spec.Classify(("a", "b", "c")),
            ("loss", "accuracy", "f1_macro", "matthews"),
            "accuracy",
        ),
        (
            recipe.ClassifyTexts(kind="classify", problem="multi"),
            spec.Classify(("a", "b"), problem="multi"),
            ("loss", "f1_micro", "accuracy"),
            "f1_micro",
        ),
        (
            recipe.ClassifyTexts(kind="classify", problem="regression"),
            spec.Classify(("a",), problem="regression"),
            ("loss", "spearman", "pearson", "mse"),
            "spearman",
        ),
        (
            recipe.TagWords(kind="tag"),
            spec.Tag(("O",)),
            ("loss", "span_f1", "span_precision", "span_recall", "accuracy"),
            "span_f1",
        ),
        (recipe.Masked(kind="masked"), spec.MaskedLM(spec.LayerNorm()), NLL, "loss"),
        (recipe.Translate(kind="seq2seq"), None, (*NLL, "bleu", "chrf", "rouge1", "rouge2", "rougeL"), "loss"),
    ],
    ids=str,
)
def test_what_fits(settings: Any, head: Any, names: tuple[str, ...], best: str) -> None:
    found = of(settings, head)
    assert found.names == names
    assert found.best == best in found.usual
    assert set(found.usual) <= set(names)
    assert metrics.better(best) == ("min" if best == "loss" else "max")


def test_questions_without_an_answer_are_counted_apart() -> None:
    span = recipe.AnswerSpan(kind="span")
    assert of(span, spec.Span(), ANSWER).names == ("loss", "exact", "f1")
    both = of(span, spec.Span(), ANSWER, {"context": "a", "answers": []})
    assert both.names == ("loss", "exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")


def test_pairs_with_scores_have_no_loss() -> None:
    """Some of them don't belong together."""
    contrast = recipe.Contrast(kind="contrast")
    assert of(contrast, spec.Pool(), {"score": 0.0}, {"score": 1}).names == ("spearman", "pearson")
    assert of(contrast, spec.Pool(), {"score": 1}, {}).names == ("loss", "accuracy")
