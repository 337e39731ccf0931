"""The head decides what is asked; one text gives one result, a list a list."""

from pathlib import Path
from typing import Any

import pytest
import torch

import qkv
from qkv import spec
from qkv.errors import InputError
from qkv.tasks.fill import fill
from qkv.tasks.predict import apply, predict, task_of
from qkv.tasks.result import Answered, Classification, Filled, Tagged
from tests.tasks.fakes import Fake, asking, bert, theirs, wordpiece

V = wordpiece().vocab_size
MASKED = spec.MaskedLM(spec.LayerNorm())
CASES: dict[type, tuple[spec.Head, Any, str, str | None]] = {
    Classification: (spec.Classify(("A", "B")), lambda ids, _: torch.tensor([float(len(ids)), 0.0]), "a b", None),
    Tagged: (spec.Tag(("O", "X")), lambda ids, _: torch.eye(2)[torch.tensor(ids) % 2], "Anna lives in Paris", None),
    Answered: (spec.Span(), lambda ids, _: torch.eye(2)[torch.tensor(ids) % 2], "Who?", "Anna lives in Paris"),
    Filled: (MASKED, lambda ids, _: torch.eye(V)[torch.tensor(ids)], "Anna [MASK] in Paris", None),
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_the_head_decides(kind: type) -> None:
    head, compute, text, second = CASES[kind]
    fake: Any = Fake(bert(head, V), compute)
    one = predict(fake, wordpiece(), text, second)
    assert isinstance(one, kind)
    texts = [text, text + " b", text]
    many = predict(fake, wordpiece(), texts, second)
    assert many == [predict(fake, wordpiece(), each, second) for each in texts]
    assert many[0] == one
    if second is not None:
        assert predict(fake, wordpiece(), texts, [second] * 3) == many
    assert predict(fake, wordpiece(), tuple(texts), second) == many
    assert predict(fake, wordpiece(), [], second) == []


def test_heads_of_pretraining_fill_in() -> None:
    both: Any = Fake(bert(spec.Heads((MASKED, spec.Classify(("next", "random")))), V), None)  # type: ignore[arg-type]
    assert task_of(both) is fill


LOADED = {
    "SequenceClassification": (("Anna lives in Paris.", "a"), "logits"),
    "TokenClassification": (("Anna lives in Paris.",), "logits"),
    "QuestionAnswering": (("Who lives?", "Anna lives in Paris."), "start_logits", "end_logits"),
    "MaskedLM": (("Anna [MASK] in Paris.",), "logits"),
    "PreTraining": (("Anna [MASK] in Paris.",), "prediction_logits"),
}


@pytest.mark.parametrize("kind", LOADED)
def test_a_loaded_model_predicts_what_transformers_does(kind: str, tmp_path: Path) -> None:
    reference, _ = theirs(tmp_path, wordpiece(), kind)
    reference.save_pretrained(tmp_path)
    loaded = qkv.load(tmp_path)
    texts, *names = LOADED[kind]
    head = loaded.spec.head.heads[0] if isinstance(loaded.spec.head, spec.Heads) else loaded.spec.head
    fake: Any = Fake(bert(head, V), asking(reference, *names))
    got, want = loaded.predict(*texts), predict(fake, wordpiece(), *texts)
    assert scores(got.to_dict()) == pytest.approx(scores(want.to_dict()), abs=1e-5)
    assert str(got) == str(want)
    if kind == "MaskedLM":
        assert loaded.fill(texts[0]) == got


def scores(value: Any) -> list[float]:
    """Every number of a result, in order."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple):
        return [value] if isinstance(value, float) else []
    return [number for one in value for number in scores(one)]


NOTHING = [
    (
        spec.LMHead(),
        "nothing to ask a model whose head is LMHead: generate continues a text with it.*new_head='classify'",
    ),
    (spec.States(), "head is States: embed makes vectors with it"),
    (spec.Pool(), "head is Pool: embed makes vectors with it"),
    (spec.Replaced(), "head is Replaced: call the model itself"),
    (spec.Heads((spec.Tag(("A",)), spec.Classify(("B",)))), "head is Heads: call the model itself"),
]


@pytest.mark.parametrize(("head", "message"), NOTHING, ids=lambda value: type(value).__name__)
def test_a_head_without_a_task_says_what_to_do(head: spec.Head, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict(Fake(bert(head, V), None), wordpiece(), "a")  # type: ignore[arg-type]


def test_wrong_arguments_are_named() -> None:
    head, compute, *_ = CASES[Classification]
    fake: Any = Fake(bert(head, V), compute)
    with pytest.raises(InputError, match="classify has no option 'top'; it has on_long, window, stride"):
        predict(fake, wordpiece(), "a", top=3)
    with pytest.raises(InputError, match="this model has no tokenizer"):
        predict(fake, None, "a")
    with pytest.raises(InputError, match="one text takes one second text, not a list"):
        predict(fake, wordpiece(), "a", ["b"])
    with pytest.raises(InputError, match="there are 2 texts and 1 second ones"):
        predict(fake, wordpiece(), ["a", "b"], ["c"])
    with pytest.raises(InputError, match="second must be a string or a list of strings, got int"):
        predict(fake, wordpiece(), ["a"], 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a text must be a string, got int"):
        predict(fake, wordpiece(), [3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="text must be a string or a list of strings, got int"):
        predict(fake, wordpiece(), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="filling in needs a MaskedLM head; the model's is Classify"):
        apply(fill, fake, wordpiece(), "a [MASK]")
