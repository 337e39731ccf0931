"""The tokenizer of a run."""

import pytest

from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.train import records, vocabulary
from qkv.train.checkpoint import CHECKPOINTS
from qkv.train.parallel import ALONE
from qkv.train.prepare import prepare
from qkv.train.vocabulary import TOKENIZER, texts_of, tokenizer_of
from tests.train.tiny import recipe, rows_of, write

BPE = {"train": "bpe", "vocab": 300}


def test_a_tokenizer_is_whole_or_not_there(folder, monkeypatch):
    own = Tokenizer.save

    def killed(self, path, **options):
        own(self, path, **options)
        (path / "tokenizer_config.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe(folder, tokenizer=BPE), folder, ALONE)
    assert not (folder / TOKENIZER).exists()
    found = prepare(recipe(folder, tokenizer=BPE), folder, ALONE)
    assert found.model.tokenizer.eos
    assert tokenizer_of(recipe(folder, tokenizer=BPE), folder / TOKENIZER).eos == found.model.tokenizer.eos
    monkeypatch.setattr(vocabulary, "trained_tokenizer", None)
    prepare(recipe(folder, tokenizer=BPE), folder, ALONE)  # it isn't trained again


def test_no_tokenizer(folder):
    with pytest.raises(InputError, match=r"tokenizer\.from"):
        prepare(recipe(folder, tokenizer={"train": None}), folder, ALONE)


def test_a_tokenizer_learns_what_is_read(folder):
    rows = [{"text": "the cat", "second": "a dog", "label": "zebra"}, {"text": "a mat", "label": "okapi"}]
    rows_of(folder / "train.jsonl", rows)
    said = recipe(folder, objective={"kind": "classify"})
    placed = [records.Placed(row, str(number)) for number, row in enumerate(rows)]
    assert list(texts_of(said, placed, records.Bad())) == ["the cat", "a dog", "a mat"]
    tags = recipe(folder, objective={"kind": "tag"})
    words = [records.Placed({"words": ["a", "cat"], "tags": ["O", "B"]}, "1")]
    assert list(texts_of(tags, words, records.Bad())) == ["a", "cat"]


def test_a_text_that_no_tokenizer_can_learn_is_named(folder):
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "the \\ud800 cat"}\n')
    with pytest.raises(InputError, match=r"^\S+train\.jsonl:41: the text has a lone surrogate, .* data\.skip_bad"):
        prepare(recipe(folder), folder, ALONE)
    assert not (folder / TOKENIZER).exists()


def test_other_data_make_another_tokenizer_until_there_is_a_checkpoint(folder):
    size = prepare(recipe(folder), folder, ALONE).model.spec.vocab
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "the okapi"}\n')
    assert prepare(recipe(folder), folder, ALONE).model.spec.vocab == size + 1
    (folder / CHECKPOINTS / "step-00000001").mkdir(parents=True)
    write(folder)
    assert prepare(recipe(folder), folder, ALONE).model.spec.vocab == size + 1


def test_other_settings_make_another_tokenizer(folder):
    long = {"on_long": "truncate"}
    prepare(recipe(folder, objective=long, tokenizer=BPE), folder, ALONE)
    other = prepare(recipe(folder, objective=long, tokenizer={**BPE, "vocab": 280}), folder, ALONE)
    assert other.model.tokenizer.vocab_size == 280
