"""Predictions: those of `qkv.tasks`, put beside what is right."""

from collections.abc import Sequence
from typing import Any

import pytest

from qkv import spec
from qkv.nn.head import IGNORED
from qkv.train import objectives, predictions, recipe
from qkv.train.predictions import Asked, answered, compared, labelled, paired, tagged
from qkv.train.records import Placed
from tests.train.heads import encoder

LABELS = ("B-X", "I-X", "O")
TEXT = "Anna Smith lives in New York with Bob and Paris is the capital of France"


def asked(model: Any, settings: Any, records: Sequence[dict[str, Any]], length: int | None = None) -> Asked:
    made = objectives.make(settings, model.spec, model.tokenizer, length)
    return Asked(model, made, [Placed(r, "x:1") for r in records], [made.encode(r) for r in records], ("accuracy",))


@pytest.mark.parametrize("on_long", ["truncate", "window"])
def test_long_texts_are_read_as_in_training(on_long: Any) -> None:
    model = encoder(spec.Classify(("bad", "good")), length=64)
    records = [{"text": TEXT, "label": "bad"}, {"text": "Bob", "second": TEXT, "label": "good"}]
    found = labelled(asked(model, recipe.ClassifyTexts(kind="classify", on_long=on_long), records, 16))
    want = [
        model.predict(TEXT, on_long=on_long, window=16),
        model.predict("Bob", TEXT, on_long=on_long, window=16),
    ]
    assert [one.predicted for one in found.shown] == [one.label for one in want]
    assert found.shown[1].input == f"Bob | {TEXT}"
    right = [one.label == record["label"] for one, record in zip(want, records, strict=True)]
    assert found.values["accuracy"] == sum(right) / 2


def test_a_tagged_text_is_what_tag_says() -> None:
    """Of words that the tokenizer leaves whole. One without tokens is outside; so is what was cut off."""
    model = encoder(spec.Tag(LABELS), length=64)
    words = TEXT.split()
    record = {"words": [*words[:5], "\u200b", *words[5:]], "tags": ["O"] * (len(words) + 1)}
    found = tagged(asked(model, recipe.TagWords(kind="tag"), [record]))
    want = {}
    for span in model.predict(" ".join(words), strategy="first").spans:
        want |= dict.fromkeys(span.text.split(), span.label)
    marked = {piece.split(":")[0] for piece in found.shown[0].predicted.split("[")[1:]}
    assert marked == set(want)
    assert len(marked) > 2, "else this shows nothing"
    assert found.values["accuracy"] == 1 - len(want) / len(record["words"])
    cut = tagged(asked(model, recipe.TagWords(kind="tag", on_long="truncate"), [record], 12))
    assert cut.shown[0].predicted.endswith("of France")


def test_first_tokens_come_in_order_over_windows() -> None:
    model = encoder(spec.Tag(LABELS), length=64)
    records = [{"words": TEXT.split() * n, "tags": ["O"] * (15 * n)} for n in (3, 1)]
    given = asked(model, recipe.TagWords(kind="tag", on_long="window"), records, 20)
    assert len(given.samples[0]) > 2
    found = predictions._first_tokens(given)
    want = []
    for own in given.samples:
        outs = [model([s["ids"].tolist()], segments=[s["segments"].tolist()])[0].argmax(-1) for s in own]
        want.append([int(i) for out, s in zip(outs, own, strict=True) for i in out[s["label"] != IGNORED]])
    assert found == want
    assert [len(own) for own in found] == [45, 15]


def test_answers_are_those_of_answer() -> None:
    model = encoder(spec.Span(), length=64)
    record = {"question": "Who?", "context": TEXT, "answers": [{"text": "Bob", "start": TEXT.index("Bob")}]}
    none = {"question": "Why?", "context": TEXT, "answers": []}
    found = answered(asked(model, recipe.AnswerSpan(kind="span", stride=4), [record, none], 20))
    options = {"window": 20, "stride": 4, "max_answer": 30, "no_answer": True}
    want = [model.predict(question, TEXT, **options).best.text or "no answer" for question in ("Who?", "Why?")]
    assert [one.predicted for one in found.shown] == want
    assert [one.expected for one in found.shown] == ["Bob", "no answer"]
    sure = answered(asked(model, recipe.AnswerSpan(kind="span", stride=4), [record], 20))
    assert sure.shown[0].predicted == model.predict("Who?", TEXT, **{**options, "no_answer": False}).best.text


def test_vectors_are_those_of_embed() -> None:
    model = encoder(spec.Pool(), length=64)
    texts = TEXT.split(" with ")
    records = [{"first": texts[0], "second": texts[1], "score": "0.5"}, {"first": "Bob", "second": "Bob", "score": 1}]
    settings = recipe.Contrast(kind="contrast")
    found = compared(asked(model, settings, records))
    first, second = model.embed(texts, normalize=True)
    assert [one.predicted for one in found.shown] == [f"{float(first @ second):.3f}", "1.000"]
    assert found.values == {"spearman": pytest.approx(1.0), "pearson": pytest.approx(1.0)}
    twins = paired(asked(model, settings, [{"first": "Bob", "second": "Bob"}] * 2))
    assert twins.values == {"accuracy": 1.0}, "the same text is right, whichever it is"
