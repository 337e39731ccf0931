"""The head that a checkpoint has, and the one that is asked for: nothing new goes unsaid."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import qkv
from qkv import spec
from qkv.errors import ConfigError, InputError, WeightError
from tests.families.reference import case

IDS = [[5, 6, 7, 8], [9, 10]]
LABELS = ["bad", "so", "good"]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    """A folder of a case's checkpoint, with changes to its config or without some tensors."""

    def write(name: str, variant: str, without: str = "-", **config: Any) -> Path:
        made = case(name, variant)
        tensors = {key: value for key, value in made.tensors.items() if not key.startswith(without)}
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_text(json.dumps({**made.config, **config}))
        return tmp_path

    return write


def test_the_checkpoint_decides(folder: Any) -> None:
    for variant, kind in (
        ("BertForTokenClassification", spec.Tag),
        ("BertForQuestionAnswering", spec.Span),
        ("BertForPreTraining", spec.Heads),
        ("BertModel", spec.States),
    ):
        model = qkv.load(folder("bert", variant))
        assert type(model.spec.head) is kind
        assert [note for note in model.notes if "tokenizer" not in note] == []


@pytest.mark.parametrize("variant", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_a_new_classifier_is_reported_and_the_rest_is_the_checkpoints(folder: Any, variant: str) -> None:
    model = qkv.load(folder("bert", variant), new_head="classify", labels=LABELS)
    assert isinstance(model.spec.head, spec.Classify)
    assert model.spec.head.labels == tuple(LABELS)
    assert [tuple(x.shape) for x in model(IDS)] == [(3,), (3,)]
    said = next(note for note in model.notes if note.startswith("new, drawn at random"))
    assert "head.out.weight [3, 32], head.out.bias [3]" in said
    assert ("head.hidden.weight" in said) == (variant == "BertForMaskedLM")  # which has no pooler to begin with
    aside = [note for note in model.notes if note.startswith("left aside")]
    assert bool(aside) == (variant != "BertModel")
    theirs = case("bert", variant).ours
    assert torch.equal(model.encoder.blocks[1].mlp.up.weight, theirs.encoder.blocks[1].mlp.up.weight)


def test_a_new_classifier_of_another_size_is_new(folder: Any) -> None:
    model = qkv.load(folder("bert", "BertForSequenceClassification"), new_head="classify", labels=LABELS)
    assert [tuple(x.shape) for x in model(IDS)] == [(3,), (3,)]
    said = next(note for note in model.notes if note.startswith("new, drawn at random"))
    assert "head.out.weight [3, 32], head.out.bias [3]" in said
    assert "head.hidden" not in said  # the checkpoint's own, which fits
    assert "left aside, of another head: classifier.bias, classifier.weight" in model.notes


def test_one_of_the_same_size_is_the_checkpoints_and_that_is_said(folder: Any) -> None:
    path = folder("bert", "BertForSequenceClassification")
    model = qkv.load(path, new_head="classify", labels=["spam", "ham"])
    assert torch.equal(model.head.out.weight, qkv.load(path).head.out.weight)
    assert "the head is the checkpoint's own: LABEL_0, LABEL_1 are now called spam, ham" in model.notes
    assert not any("are now called" in note for note in qkv.load(path).notes)


def test_a_spec_of_a_classifier_is_never_next_sentences(folder: Any) -> None:
    path = folder("bert", "BertForPreTraining")
    model = qkv.load(path, new_head=spec.Classify(("bad", "good"), hidden="tanh"))
    assert any("new, drawn at random" in note and "head.out.weight [2, 32]" in note for note in model.notes)
    next_sentence = qkv.load(path).head.each[1].out.weight
    assert not torch.equal(model.head.out.weight, next_sentence)


def test_a_new_head_has_the_problem_that_its_labels_say(folder: Any) -> None:
    path = folder("bert", "BertForSequenceClassification", problem_type="multi_label_classification")
    assert qkv.load(path).spec.head.problem == "multi"
    assert qkv.load(path, new_head="classify", labels=LABELS).spec.head.problem == "single"


def test_an_encoder_alone(folder: Any) -> None:
    """A head on T5's encoder leaves the decoder aside; vectors are the encoder's (so sentence-transformers)."""
    for how in ({"new_head": "tag", "labels": LABELS}, {"new_head": "pool"}):
        model = qkv.load(folder("t5", "tiny"), **how)
        assert model.decoder is None
        assert "left aside, of the decoder, which this head doesn't read: 28 tensors" in model.notes
        theirs = case("t5", "tiny").ours
        assert torch.equal(model.encoder.blocks[1].mlp.up.weight, theirs.encoder.blocks[1].mlp.up.weight)
    for head in ("pool", "states"):
        assert qkv.load(folder("t5", "T5EncoderModel"), new_head=head).decoder is None
    assert qkv.load(folder("t5", "T5Model"), new_head="states").decoder is not None


def test_a_decoder_becomes_a_classifier(folder: Any) -> None:
    model = qkv.load(folder("llama", "tiny"), new_head="classify", labels=LABELS)
    assert [tuple(x.shape) for x in model(IDS)] == [(3,), (3,)]
    assert any("head.out.weight [3, 32]" in note for note in model.notes)
    assert "left aside, of another head: lm_head.weight" in model.notes


def test_a_head_of_ones_own_making(folder: Any) -> None:
    model = qkv.load(folder("bert", "BertForMaskedLM"), new_head=spec.Pool(how="cls", normalize=True))
    assert "the checkpoint has no pooler" in model.notes
    vectors = torch.stack(model(IDS))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    assert not [note for note in model.notes if note.startswith("new")]  # pooling has no weights


@pytest.mark.parametrize("head", ["states", "pool"])
def test_what_has_no_pooler_is_saved_without(folder: Any, tmp_path: Path, head: str) -> None:
    model = qkv.load(folder("bert", "BertForMaskedLM"), new_head=head)
    again = qkv.load(qkv.save(model, tmp_path / "saved"))
    assert again.notes[-1] == "the checkpoint has no pooler"
    assert again.spec == model.spec
    assert all(torch.equal(a, b) for a, b in zip(again(IDS), model(IDS), strict=True))


def test_a_head_that_the_checkpoint_lacks_is_never_made_up(folder: Any) -> None:
    for variant, architecture in (
        ("BertModel", "BertForSequenceClassification"),
        ("BertModel", "BertForMaskedLM"),
        ("BertForQuestionAnswering", "BertForTokenClassification"),
    ):
        with pytest.raises(WeightError, match="missing"):
            qkv.load(folder("bert", variant, architectures=[architecture]))
    path = folder("bert", "BertForSequenceClassification", without="classifier")
    with pytest.raises(WeightError, match=r"missing \(2\): classifier.bias, classifier.weight\n.*by new_head"):
        qkv.load(path)


def test_labels_by_other_names(folder: Any) -> None:
    path = folder("bert", "BertForSequenceClassification")
    count = len(qkv.load(path).spec.head.labels)
    names = [f"label {i}" for i in range(count)]
    assert qkv.load(path, labels=names).spec.head.labels == tuple(names)
    with pytest.raises(InputError, match=rf"{count + 1} labels for a head of {count} .*new_head makes one"):
        qkv.load(path, labels=[*names, "more"])
    with pytest.raises(InputError, match="labels are for a classifier; this checkpoint's head is MaskedLM"):
        qkv.load(folder("bert", "BertForMaskedLM"), labels=names)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"new_head": "classifier"}, "new_head 'classifier' is not one of lm, masked, classify"),
        ({"new_head": "classify"}, r"new_head='classify' needs labels=\[…\]"),
        ({"new_head": "tag"}, "new_head='tag' needs labels"),
        ({"new_head": "span", "labels": LABELS}, "new_head='span' has no labels"),
        ({"new_head": "classify", "labels": []}, r"labels must be a list of names, got \[\]"),
        ({"new_head": "classify", "labels": "bad"}, "labels must be a list of names, got 'bad'"),
        ({"new_head": "classify", "labels": ["a", "a"]}, "labels"),
        ({"new_head": "replaced"}, "no checkpoint of the family bert has a head Replaced"),
        ({"new_head": "lm"}, "no checkpoint of the family bert has a head LMHead"),
        ({"new_head": spec.Pool(), "labels": LABELS}, "labels are not for the head Pool: its spec says all of it"),
        ({"new_head": spec.Tag(("a", "b")), "labels": LABELS}, "labels are not for the head Tag"),
    ],
)
def test_a_wrong_wish(folder: Any, how: dict[str, Any], said: str) -> None:
    with pytest.raises((InputError, ConfigError), match=said):
        qkv.load(folder("bert", "BertModel"), **how)


def test_a_label_count_that_differs_from_the_weights(folder: Any) -> None:
    config = {"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}, "label2id": None}
    with pytest.raises(WeightError, match=r"classifier.weight is \[\d, 32\], should be \[4, 32\]"):
        qkv.load(folder("bert", "BertForSequenceClassification", **config))
    with pytest.raises(ConfigError, match="'num_labels' is 7, but id2label names 4"):
        qkv.load(folder("bert", "BertForSequenceClassification", **config, num_labels=7))


def test_a_new_head_is_saved_under_its_own_name(folder: Any, tmp_path: Path) -> None:
    model = qkv.load(folder("bert", "BertModel"), new_head="classify", labels=LABELS)
    again = qkv.load(qkv.save(model, tmp_path / "saved"))
    assert again.spec == model.spec
    for left, right in zip(again(IDS), model(IDS), strict=True):
        torch.testing.assert_close(left, right)
