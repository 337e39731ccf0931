"""Spans are those of transformers' pipeline; long texts take each token's label from the window with most context."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Encoded
from qkv.inputs.text import Tokenizer
from qkv.tasks.predict import predict
from qkv.tasks.tag import _Word, best_context, merge, tag, word_tokens
from qkv.tasks.windows import Window, cut
from tests.inputs.samples import sentencepiece
from tests.tasks.fakes import Fake, asking, bert, by_id, theirs, wordpiece

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXT = "Anna Smith lives in New York with Bob."


def model(compute: Any, labels: tuple[str, ...] = LABELS, **changes: Any) -> Any:
    return Fake(bert(spec.Tag(labels), wordpiece().vocab_size, **changes), compute)


STRATEGIES = {"first": "first", "max": "max", "mean": "average", "none": "none"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("labels", [LABELS, ("NOUN", "O", "VERB")], ids=["BIO", "plain"])
def test_spans_are_those_of_the_pipeline(strategy: str, seed: int, labels: tuple[str, ...], tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(seed)
    reference, tokenizer = theirs(tmp_path, wordpiece(), "TokenClassification", labels)
    pipeline = transformers.pipeline(
        "token-classification", model=reference, tokenizer=tokenizer, aggregation_strategy=STRATEGIES[strategy]
    )
    with torch.no_grad():  # so that no label takes all
        reference.classifier.weight.normal_()
        reference.classifier.bias.zero_()
    key = "entity" if strategy == "none" else "entity_group"
    found: list[Any] = []
    for text in (TEXT, "The quick brown fox", "isn't it 😀 unbelievable?  Who lives  in Berlin"):
        got = predict(model(asking(reference, "logits"), labels), wordpiece(), text, strategy=strategy).spans
        want = pipeline(text)
        assert [(one.label, one.start, one.end) for one in got] == [(o[key], o["start"], o["end"]) for o in want]
        assert [one.score for one in got] == pytest.approx([float(o["score"]) for o in want], abs=1e-5)
        assert all(text[one.start : one.end] == one.text for one in got)
        found += want
    assert found


SCHEMES = {
    "B-A I-A I-A O B-A": "AAA.A",
    "B-A B-A I-A": "A|AA",
    "I-A I-A B-B I-B": "AA|BB",
    "B-A I-B I-A": "A|B|A",
    "S-A S-A": "A|A",
    "B-A E-A B-A E-A": "AA|AA",
    "B-A E-A I-A": "AA|A",
    "B-A L-A U-A": "AA|A",
    "B-A M-A E-A S-A": "AAA|A",
    "X X O X Y": "XX.X|Y",
    "O O": "..",
}


@pytest.mark.parametrize("labels", SCHEMES)
def test_labels_of_every_scheme_merge(labels: str) -> None:
    groups = merge([_Word(i, i + 1, label, 1.0) for i, label in enumerate(labels.split())])
    found = "".join("." if label == "O" else "|" + label * len(group) for label, group in groups if label != "O")
    assert found == "".join(f"|{part}" for part in SCHEMES[labels].replace(".", "|").split("|") if part)


def test_words_that_the_tokenizer_does_not_cut_are_cut_at_spaces() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece())
    text = "the cat's  time,日本 is"
    (pieces,) = tokenizer.pieces([text])
    assert len(set(pieces.words)) == 1
    words = ["".join(text[slice(*pieces.offsets[i])] for i in own).strip() for own in word_tokens(text, pieces)]
    assert [word for word in words if word] == ["the", "cat's", "time,日" + "本" * 3, "is"]
    (pieces,) = wordpiece().pieces(["isn't unbelievable"])
    assert [len(own) for own in word_tokens("isn't unbelievable", pieces)] == [
        pieces.words.count(word) for word in sorted(set(pieces.words))
    ]


@given(length=st.integers(1, 30), room=st.integers(2, 12), stride=st.integers(0, 11))
def test_each_token_is_read_where_it_has_most_context(length: int, room: int, stride: int) -> None:
    parts = cut(length, room, min(stride, room - 1))
    empty = Encoded([], [], [], [], [])
    found = [Window(empty, part) for part in parts]
    rows = best_context(found, [torch.tensor([[token, i] for token in part]) for i, part in enumerate(parts)])
    assert rows[:, 0].tolist() == [*range(length)]

    def context(token: int, part: range) -> float:
        left = float("inf") if part.start == 0 else token - part.start
        right = float("inf") if part.stop == length else part.stop - 1 - token
        return min(left, right)

    for token, chosen in rows.tolist():
        assert context(token, parts[chosen]) == max(context(token, part) for part in parts if token in part)


def test_a_long_text_has_the_spans_of_its_words() -> None:
    """A head that sees one token at a time: windows must not change anything."""
    torch.manual_seed(0)
    table = torch.randn(wordpiece().vocab_size, len(LABELS)) * 3
    text = " ".join([TEXT, "Paris is the capital of France. 😀"] * 9)
    whole = predict(model(by_id(table), length=2000), wordpiece(), text)
    for window, stride in ((64, None), (20, 5), (9, 6), (3, 0)):
        found = predict(model(by_id(table)), wordpiece(), text, window=window, stride=stride)
        assert found.spans == whole.spans
        assert found.windows > 1
    assert whole.windows == 1
    assert len(whole.spans) > 20


def test_overlap_brings_back_what_a_word_needs() -> None:
    """A head that needs two tokens on each side to see anything."""

    def compute(ids: list[int], _: list[int]) -> torch.Tensor:
        out = torch.zeros(len(ids), 2)
        inner = [2 <= i < len(ids) - 2 and 2 not in ids[i - 2 : i] and 3 not in ids[i : i + 3] for i in range(len(ids))]
        out[:, 1] = torch.tensor([1.0 if seen else -1.0 for seen in inner])
        return out

    text = "a b " * 30
    found = predict(model(compute, ("O", "X"), length=20), wordpiece(), text, strategy="none", stride=4)
    assert [span.start for span in found.spans] == [*range(4, 232, 2)][: len(found.spans)]
    assert len(found.spans) == 56


def test_a_batch_is_as_each_text_alone() -> None:
    table = torch.randn(wordpiece().vocab_size, len(LABELS))
    texts = [TEXT, "a", TEXT * 5, "The quick brown fox"]
    tagger = model(by_id(table))
    assert predict(tagger, wordpiece(), texts) == [predict(tagger, wordpiece(), text) for text in texts]


def test_wrong_input_is_named() -> None:
    good, tokenizer = model(by_id(torch.zeros(300, 5))), wordpiece()
    with pytest.raises(InputError, match="strategy is 'average', none of first, max, mean, none"):
        predict(good, tokenizer, "a", strategy="average")
    with pytest.raises(InputError, match="tagging takes one text, without a second"):
        predict(good, tokenizer, "a", "b")
    with pytest.raises(InputError, match="stride is 64, and a window 64 tokens"):
        predict(good, tokenizer, "a", stride=64)
    with pytest.raises(InputError, match="a stride of 62 needs windows of more than that, and here 62 tokens fit"):
        predict(good, tokenizer, "a " * 99, stride=62)
    with pytest.raises(ConfigError, match="the head has 5 labels and computes 4 scores"):
        predict(model(by_id(torch.zeros(300, 4))), tokenizer, "a")
    with pytest.raises(InputError, match="this needs a Tag head; the model's is Span"):
        tag(Fake(bert(spec.Span(), 99), good.compute), tokenizer, [("a",)])  # type: ignore[arg-type]
