"""From a recipe to what the loop needs."""

import json

import pytest

from qkv.errors import ConfigError, InputError, NotFound
from qkv.train.checkpoint import CHECKPOINTS
from qkv.train.parallel import ALONE
from qkv.train.prepare import check_metrics, has_part, labels_of, prepare, problem_of
from qkv.train.recipe import ModelFrom
from tests.train.tiny import recipe, rows_of, write

WIDTHS = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
BERT = {"model_type": "bert", **WIDTHS, "max_position_embeddings": 32}
DISTILBERT = {"model_type": "distilbert", "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16}


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


def test_a_text_that_the_tokenizer_cannot_say_is_named(folder):
    prepare(recipe(folder), folder, ALONE)
    (folder / CHECKPOINTS / "step-00000001").mkdir(parents=True)
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": "the okapi"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl:41: the vocabulary has no 'okapi'"):
        prepare(recipe(folder), folder, ALONE)
    write(folder)
    (folder / "valid.jsonl").write_text('{"text": "the okapi"}\n')
    with pytest.raises(InputError, match=r"valid\.jsonl:1: the vocabulary has no 'okapi'"):
        prepare(recipe(folder, data={"valid": "valid.jsonl"}), folder, ALONE)


def test_parts(folder):
    own = recipe(folder, data={"valid": "valid.jsonl"})
    held = recipe(folder, data={"hold_out": {"test": 0.2}})
    assert [has_part(own, which) for which in ("train", "valid", "test")] == [True, True, False]
    assert [has_part(held, which) for which in ("train", "valid", "test")] == [True, False, True]
    found = prepare(held, folder, ALONE)
    assert found.test is not None
    assert len(found.samples) + len(found.test.records) == 40
    limited = recipe(folder, data={"valid": "valid.jsonl"}, eval={"limit": 2})
    assert len(prepare(limited, folder, ALONE).evaluator.records) == 2


@pytest.mark.parametrize("change", [{"every": 3}, {"best": "loss"}, {"metrics": ["loss"]}])
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


def test_samples_of_packing_are_others(folder):
    plain = prepare(recipe(folder, batch={"length": 32}), folder, ALONE)
    packed = prepare(recipe(folder, batch={"length": 32, "packing": "blocks"}), folder, ALONE)
    assert set(plain.samples[0]) == {"ids", "learned"}
    assert set(packed.samples[0]) == {"ids"}


@pytest.mark.filterwarnings("ignore:the texts gave")
def test_samples_of_a_model_without_segments_are_others(folder):
    rows_of(folder / "train.jsonl", [{"text": "the cat", "label": "a"}, {"text": "a dog", "label": "b"}])
    said = {"objective": {"kind": "classify"}, "tokenizer": {"train": "wordpiece", "vocab": 60}}
    columns = []
    for config in (BERT, {**DISTILBERT, "max_position_embeddings": 32}):
        model = ModelFrom(config=config, new_head="classify")
        tried = recipe(folder, **said).model_copy(update={"model": model})
        columns.append(set(prepare(tried, folder, ALONE).samples[0]))
    assert columns == [{"ids", "label", "segments"}, {"ids", "label"}]


def test_a_bad_record_counts_once(folder):
    """Whichever parts read its file, whether a tokenizer is trained, and whether samples are there already."""
    bad = '{"text": "the \\ud800 cat"}\nnot JSON\n'
    with (folder / "train.jsonl").open("a") as file:
        file.write(bad)
    said = {"hold_out": {"valid": 0.2, "test": 0.2}}
    for out in ("first", "again"):
        found = prepare(recipe(folder, data={**said, "skip_bad": 2}), folder / out, ALONE)
        assert found.samples.counts["bad"] == 2
        with pytest.raises(InputError, match=r"train\.jsonl:42: .*bad record number 2; data\.skip_bad is 1"):
            prepare(recipe(folder, data={**said, "skip_bad": 1}), folder / out, ALONE)
    with pytest.raises(InputError, match=r"train\.jsonl:42: .*bad record number 2; data\.skip_bad is 1"):
        prepare(recipe(folder, data={**said, "skip_bad": 1}), folder / "new", ALONE)
    assert len(list((folder / "cache" / "samples").iterdir())) == 1


def test_samples_that_are_there_tell_of_their_bad_records(folder, capsys):
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"text": ""}\n')
    told = []
    for _ in "ab":
        prepare(recipe(folder, data={"skip_bad": 1}), folder, ALONE)
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "train.jsonl:41: text must be a text" in told[0]
    with pytest.raises(InputError, match=r"train\.jsonl:41: text must be a text"):
        prepare(recipe(folder), folder, ALONE)


def test_a_file_of_two_parts_is_told(folder):
    said = recipe(folder, data={"valid": ["valid.jsonl", "../" + folder.name + "/train.jsonl"], "test": "*.jsonl"})
    notes = prepare(said, folder, ALONE).notes
    named = [note.split(", ")[0].rsplit("/")[-1] for note in notes[1:]]
    assert [note.split()[0] for note in notes[1:]] == ["data.valid", "data.test"]
    assert named == ["train.jsonl", "train.jsonl"]
    assert len(prepare(recipe(folder, data={"valid": "valid.jsonl"}), folder, ALONE).notes) == 1
