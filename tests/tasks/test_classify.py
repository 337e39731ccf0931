"""Labels and scores are transformers'; a long text is refused, cut or read in windows, and the result says which."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.tasks.classify import classify
from qkv.tasks.predict import predict
from tests.tasks.fakes import Fake, asking, bert, theirs, wordpiece

LABELS = ("bad", "fair", "good")
TEXTS = ["Paris is the capital of France", "The lazy dog. 😀", "a", "Don't do not!"]


def model(compute: Any, length: int = 64, **head: Any) -> Any:
    return Fake(bert(spec.Classify(LABELS, **head), wordpiece().vocab_size, length=length), compute)


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_scores_are_those_of_the_pipeline(problem: str, tmp_path: Path) -> None:
    import transformers

    kinds = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}
    reference, tokenizer = theirs(tmp_path, wordpiece(), "SequenceClassification", LABELS, problem_type=kinds[problem])
    pipeline = transformers.pipeline("text-classification", model=reference, tokenizer=tokenizer, top_k=None)
    function = {"single": "softmax", "multi": "sigmoid", "regression": "none"}[problem]
    fake = model(asking(reference, "logits"), problem=problem)
    for second in (None, "The quick brown fox"):
        got = predict(fake, wordpiece(), TEXTS, second)
        for text, result in zip(TEXTS, got, strict=True):
            pair = {"text": text} if second is None else {"text": text, "text_pair": second}
            want = pipeline(pair, function_to_apply=function)
            assert [*result.scores] == [one["label"] for one in want]
            assert [*result.scores.values()] == pytest.approx([one["score"] for one in want], abs=1e-5)
            assert (result.label, result.score) == next(iter(result.scores.items()))
            assert (result.problem, result.windows, result.unread) == (problem, 1, 0)


def count_a(ids: list[int], _: list[int]) -> torch.Tensor:
    """Logits that say how often "a" and "b" stand in what was read."""
    tokenizer = wordpiece()
    return torch.tensor([float(ids.count(tokenizer.id("a") or 0)), float(ids.count(tokenizer.id("b") or 0)), 0.0])


def test_a_long_text_is_refused_cut_or_read_in_windows() -> None:
    text, tokenizer = "a " * 10 + "b " * 10, wordpiece()
    tokens = len(tokenizer.encode(text))
    long = model(count_a, length=12, problem="regression")
    wanted = rf"the text has {tokens} tokens; the most is 12: this model's learned positions. on_long='truncate'"
    with pytest.raises(InputError, match=wanted):
        predict(long, tokenizer, text)
    cut = predict(long, tokenizer, text, on_long="truncate")
    assert (cut.scores, cut.unread, cut.windows) == ({"bad": 10.0, "fair": 0.0, "good": 0.0}, tokens - 12, 1)
    read = predict(long, tokenizer, text, on_long="window", stride=0)
    assert (read.scores, read.unread, read.windows) == ({"bad": 5.0, "fair": 5.0, "good": 0.0}, 0, 2)
    short = predict(long, tokenizer, ["a", text], on_long="window", window=7, stride=0)
    assert [(one.scores["bad"], one.windows) for one in short] == [(1.0, 1), (2.5, 4)]
    assert predict(long, tokenizer, "a b", on_long="truncate").unread == 0


def test_of_two_texts_the_longer_is_cut() -> None:
    long, tokenizer = model(count_a, length=12, problem="regression"), wordpiece()
    for pair in (("a " * 12, "b"), ("b", "a " * 12)):
        with pytest.raises(InputError, match="the text has 16 tokens"):
            predict(long, tokenizer, *pair)
        cut = predict(long, tokenizer, *pair, on_long="truncate")
        assert (cut.scores["bad"], cut.scores["fair"], cut.unread) == (8.0, 1.0, 4)
        read = predict(long, tokenizer, *pair, on_long="window", stride=4)
        assert (read.scores["bad"], read.scores["fair"], read.windows) == (8.0, 1.0, 2)
    with pytest.raises(InputError, match="leave no room"):
        predict(long, tokenizer, "a " * 9, "b " * 10, on_long="window", window=12)


def test_wrong_input_is_named() -> None:
    good, tokenizer = model(count_a), wordpiece()
    with pytest.raises(InputError, match="on_long is 'cut', none of error, truncate, window"):
        predict(good, tokenizer, "a", on_long="cut")
    with pytest.raises(InputError, match=r"texts\[1\]: '' has no token"):
        predict(good, tokenizer, ["a", ""])
    with pytest.raises(ConfigError, match="the head has 3 labels and computes 2 scores"):
        predict(model(lambda ids, _: torch.zeros(2)), tokenizer, "a")
    with pytest.raises(InputError, match="this needs a Classify head; the model's is Span"):
        classify(Fake(bert(spec.Span(), 99), count_a), tokenizer, [("a",)])  # type: ignore[arg-type]
    assert classify(good, tokenizer, []) == []
