"""How configs say heads: labels, problems, dropouts."""

from typing import Any

import pytest

from qkv import spec
from qkv.errors import ConfigError
from qkv.families.config import Reader, read_labels, read_problem
from qkv.families.family import find, names, pair
from qkv.families.heads import dropout_of, nested


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "no", "1": "yes"}}, ("no", "yes")),
        ({"id2label": {"1": "yes", "0": "no"}, "num_labels": 2}, ("no", "yes")),
        ({"id2label": {0: "no", 1: "yes"}, "_num_labels": 2}, ("no", "yes")),
    ],
)
def test_labels(config: dict[str, Any], labels: tuple[str, ...]) -> None:
    assert read_labels(Reader(config, "test")) == labels


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "a", "2": "c"}}, "'id2label' must name the labels 0, 1, 2"),
        ({"id2label": ["a", "b"]}, "'id2label' must name the labels 0, 1, 2"),
        ({"id2label": {"0": 1}}, "'id2label' must name each label by a text"),
        ({"id2label": {"0": "a"}, "num_labels": 2}, "'num_labels' is 2, but id2label names 1"),
        ({"num_labels": 0}, "'num_labels' must be a whole number"),
    ],
)
def test_labels_that_make_no_sense(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_labels(Reader(config, "test"))


def test_problems() -> None:
    two, one = ("a", "b"), ("score",)
    assert read_problem(Reader({}, "test"), two) == "single"
    assert read_problem(Reader({}, "test"), one) == "regression"
    assert read_problem(Reader({"problem_type": None}, "test"), one) == "regression"
    assert read_problem(Reader({"problem_type": "multi_label_classification"}, "test"), two) == "multi"
    with pytest.raises(ConfigError, match="'problem_type' must be one of"):
        read_problem(Reader({"problem_type": "guess"}, "test"), two)


def test_a_dropout_is_the_first_that_is_said() -> None:
    read = dropout_of("classifier_dropout", "hidden_dropout_prob")
    assert read(Reader({"classifier_dropout": None, "hidden_dropout_prob": 0.3}, "test")) == 0.3
    assert read(Reader({"classifier_dropout": 0.0, "hidden_dropout_prob": 0.3}, "test")) == 0.0
    assert read(Reader({}, "test")) == 0.1


def test_rows_of_a_head_among_several() -> None:
    assert [row.targets for row in nested(pair("cls", "head.out"), 1)] == [
        ("head.each.1.out.weight",),
        ("head.each.1.out.bias",),
    ]


@pytest.mark.parametrize("name", names())
def test_every_kind_of_checkpoint_has_the_head_it_says(name: str) -> None:
    family = find(name)
    for architecture in family.architectures:
        model = family.spec({**family.tiny, "architectures": [architecture.name]})
        assert type(model.head) is architecture.kind
        written = family.config(model)
        assert family.spec(written) == model
        if isinstance(model.head, spec.Classify | spec.Tag):
            assert written["id2label"] == dict(enumerate(model.head.labels))


def test_what_sentence_transformers_notes_of_a_cross_encoder() -> None:
    family = find("bert")
    config = {**family.tiny, "architectures": ["BertForSequenceClassification"], "num_labels": 1}
    identity = "torch.nn.modules.linear.Identity"
    for said in (
        {"sentence_transformers": {"activation_fn": identity}},
        {"sbert_ce_default_activation_function": identity},
    ):
        head = family.spec({**config, **said}).head
        assert isinstance(head, spec.Classify)
        assert head.problem == "regression"
    for said in (
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {"sentence_transformers": {"pool": 1}},
    ):
        with pytest.raises(ConfigError, match=r"activation_fn|pool"):
            family.spec({**config, **said})
