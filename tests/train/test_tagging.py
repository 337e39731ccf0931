"""Tags of words: tokens and labels are those of transformers' run_ner, and predictions read what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.nn.head import IGNORED
from qkv.tasks.tag import word_tokens
from qkv.train import recipe
from qkv.train.tagging import TagWords, labels_of
from tests.inputs.samples import CORPUS
from tests.tasks.fakes import theirs, wordpiece
from tests.train.heads import collated, encoder, loaded

LABELS = ("B-LOC", "B-PER", "O")
WORDS = ["Anna-Marie", "lives", "in", "New", "York", ",", "unbelievable", "!"]
TAGS = ["B-PER", "O", "O", "B-LOC", "O", "O", "B-LOC", "O"]
RECORD = {"words": WORDS, "tags": TAGS}


def made(model: Any, length: int | None = None, **settings: Any) -> TagWords:
    return TagWords(recipe.TagWords(kind="tag", **settings), model.spec, model.tokenizer or wordpiece(), length)


def aligned(reader: Any, words: list[str], tags: list[str]) -> tuple[list[int], list[int]]:
    """As transformers' run_ner.py does with `label_all_tokens` off."""
    encoding = reader(words, is_split_into_words=True)
    labels, before = [], None
    for word in encoding.word_ids():
        labels.append(IGNORED if word is None or word == before else LABELS.index(tags[word]))
        before = word
    return encoding["input_ids"], labels


def test_tokens_labels_and_loss_are_those_of_transformers(tmp_path: Path) -> None:
    reference, reader = theirs(tmp_path, wordpiece(), "TokenClassification", LABELS)
    model = loaded(reference, tmp_path)
    objective = made(model)
    records = [RECORD, {"words": ["Paris"], "tags": ["B-LOC"]}]
    want, count = 0.0, 0
    for record in records:
        (sample,) = objective.encode(record)
        ids, labels = aligned(reader, record["words"], record["tags"])
        assert (sample["ids"].tolist(), sample["label"].tolist()) == (ids, labels)
        with torch.no_grad():
            mean = reference(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        want, count = want + float(mean) * len(record["words"]), count + len(record["words"])
    feed = collated(objective, [s for record in records for s in objective.encode(record)])
    assert feed.targets == count
    assert float(objective.loss(model, feed).detach()) == pytest.approx(want, rel=1e-5)


@given(st.lists(st.text("aéß-'.Z9 ", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=8))
def test_first_tokens_as_in_transformers(words: list[str]) -> None:
    objective = made(encoder(spec.Tag(LABELS)))
    pieces, first = objective.read(words)
    raw = wordpiece()._backend.raw.encode([*words], is_pretokenized=True, add_special_tokens=False)
    assert pieces.ids == raw.ids
    assert first == {word: raw.word_ids.index(word) for word in sorted(set(raw.word_ids))}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.filterwarnings("ignore")
def test_prediction_reads_the_same_first_tokens(kind: Any) -> None:
    """Of words without punctuation, whatever cuts them: a space before a word is of its first token or before it."""
    trained: Tokenizer = train_tokenizer(CORPUS, kind, 300)
    objective = made(encoder(spec.Tag(LABELS), trained))
    words = ["lazy", "unbelievable", "dog", "東京", "é"]
    pieces, first = objective.read(words)
    assert [first[i] for i in range(5)] == [own[0] for own in word_tokens(" ".join(words), pieces)]


def test_words_without_tokens_have_no_label() -> None:
    objective = made(encoder(spec.Tag(LABELS)))
    (sample,) = objective.encode({"words": ["a", "\u200b", "Bob"], "tags": ["O", "O", "B-PER"]})
    assert [label for label in sample["label"].tolist() if label != IGNORED] == [2, 1]
    with pytest.raises(InputError, match="have no token"):
        objective.encode({"words": ["\u200b"], "tags": ["O"]})


def test_windows_label_each_word_once() -> None:
    model = encoder(spec.Tag(LABELS))
    words = [f"word{i}" for i in range(40)]
    tags = [LABELS[i % 3] for i in range(40)]
    objective = made(model, 20, on_long="window")
    samples = objective.encode({"words": words, "tags": tags})
    assert len(samples) > 3
    assert objective.cut == 1
    found = [LABELS[label] for sample in samples for label in sample["label"].tolist() if label != IGNORED]
    assert found == tags
    cut = made(model, 20, on_long="truncate")
    (sample,) = cut.encode({"words": words, "tags": tags})
    assert len(sample["ids"]) == len(sample["label"]) == 20
    assert made(model, 20, on_long="drop").encode({"words": words, "tags": tags}) == []
    with pytest.raises(InputError, match="the most is 20"):
        made(model, 20).encode({"words": words, "tags": tags})


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"words": ["a"], "tags": ["O", "O"]}, "1 words and 2 tags"),
        ({"words": ["a"], "tags": ["B-X"]}, "tag 'B-X' is none of the head's"),
        ({"words": [], "tags": []}, "words must be a list"),
        ({"words": ["a", ""], "tags": ["O", "O"]}, "words has an empty one"),
        ({"words": ["a"], "tags": [1]}, "tags must be a list"),
        ({"words": ["a"]}, "tags must be a list of texts, got None"),
    ],
)
def test_bad_records_say_what_is_wrong(record: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        made(encoder(spec.Tag(LABELS))).encode(record)


def test_labels_come_from_the_data() -> None:
    said = recipe.TagWords(kind="tag")
    assert labels_of([RECORD, {"words": ["x"]}], said) == LABELS
    assert labels_of([RECORD], recipe.TagWords(kind="tag", labels=("O", "X"))) == ("O", "X")
    with pytest.raises(InputError, match="no record has a label"):
        labels_of([], said)
    with pytest.raises(ConfigError, match="in this order"):
        made(encoder(spec.Tag(LABELS)), labels=("O",))
    assert made(encoder(spec.Tag(LABELS))).encode({"words": "a Bob", "tags": "O B-PER"})
