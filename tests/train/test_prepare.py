"""From a recipe to what the loop needs."""

import json

import pytest

from qkv.errors import ConfigError, InputError, NotFound
from qkv.inputs.text import Tokenizer
from qkv.train import prepare as module
from qkv.train.parallel import ALONE
from qkv.train.prepare import TOKENIZER, check_metrics, has_part, labels_of, prepare, problem_of, tokenizer_of
from tests.train.tiny import recipe, write

BPE = {"train": "bpe", "vocab": 300}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("qkv.train.prepare.cache_root", lambda: tmp_path / "cache")
    write(tmp_path)
    return tmp_path


def test_samples_are_made_once(folder, monkeypatch):
    first = prepare(recipe(folder), folder, ALONE)
    assert first.notes == ("40 training records are 40 samples of 427 tokens",)
    assert (first.evaluator, first.test) == (None, None)
    monkeypatch.setattr(type(first.objective), "encode", None)
    again = prepare(recipe(folder), folder, ALONE)
    assert again.samples.folder == first.samples.folder
    assert again.print == json.loads(json.dumps(first.print)), "as a checkpoint gives it back"


def test_a_shard_that_is_gone_is_named(folder):
    found = prepare(recipe(folder), folder, ALONE)
    lost = next(found.samples.folder.glob("00000.ids.npy"))
    lost.unlink()
    with pytest.raises(NotFound, match=rf"{lost.name} is gone: delete the folder"):
        prepare(recipe(folder), folder, ALONE)
    (found.samples.folder / "index.json").unlink()
    assert len(prepare(recipe(folder), folder, ALONE).samples) == 40


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
    monkeypatch.setattr(module, "trained_tokenizer", None)
    prepare(recipe(folder, tokenizer=BPE), folder, ALONE)  # it isn't trained again


def test_a_text_that_the_tokenizer_cannot_say_is_named(folder):
    prepare(recipe(folder), folder, ALONE)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "the okapi"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl:41: the vocabulary has no 'okapi'"):
        prepare(recipe(folder), folder, ALONE)
    write(folder)
    (folder / "valid.jsonl").write_text('{"text": "the okapi"}\n')
    with pytest.raises(InputError, match=r"valid\.jsonl:1: the vocabulary has no 'okapi'"):
        prepare(recipe(folder, data={"valid": "valid.jsonl"}), folder, ALONE)


def test_no_tokenizer(folder):
    with pytest.raises(InputError, match=r"tokenizer\.from"):
        prepare(recipe(folder, tokenizer={"train": None}), folder, ALONE)


def test_parts(folder):
    own = recipe(folder, data={"valid": "valid.jsonl"})
    held = recipe(folder, data={"hold_out": {"test": 0.2}})
    assert [has_part(own, which) for which in ("train", "valid", "test")] == [True, True, False]
    assert [has_part(held, which) for which in ("train", "valid", "test")] == [True, False, True]
    found = prepare(held, folder, ALONE)
    assert found.test is not None
    assert len(found.samples) + len(found.test().records) == 40
    limited = recipe(folder, data={"valid": "valid.jsonl"}, eval={"limit": 2})
    assert len(prepare(limited, folder, ALONE).evaluator.records) == 2


@pytest.mark.parametrize("change", [{"every": 3}, {"best": "loss"}, {"patience": 1}, {"metrics": ["loss"]}])
def test_what_evaluation_needs(folder, change):
    with pytest.raises(ConfigError, match=rf"eval\.{next(iter(change))} needs validation records"):
        check_metrics(recipe(folder, eval=change), None)


def test_labels_and_problem(folder):
    rows = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": ["z"]}]
    said = recipe(folder, objective={"kind": "classify", "problem": "multi"})
    assert labels_of(said, rows) == ("x", "y", "z")
    assert problem_of(said) == "multi"
    tags = recipe(folder, objective={"kind": "tag"})
    assert labels_of(tags, [{"words": ["a"], "tags": ["O"]}]) == ("O",)
    assert labels_of(recipe(folder), rows) is problem_of(recipe(folder)) is problem_of(tags) is None
