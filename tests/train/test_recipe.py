"""What a recipe may say."""

import pytest
from pydantic import ValidationError

from qkv.train.recipe import Recipe
from qkv.train.recipe_file import merge

LEAST = {
    "name": "r",
    "model": {"from": "m"},
    "data": {"train": "t.jsonl"},
    "objective": {"kind": "causal"},
    "batch": {"sequences": 8},
    "train": {"steps": 10},
}


def recipe(**changes):
    return Recipe.model_validate(merge(LEAST, changes))


def test_the_least_that_a_recipe_says():
    made = recipe()
    assert made.model.origin == "m"
    assert made.train.optimizer == "adamw"
    assert made.eval.every is None
    with pytest.raises(ValidationError):
        made.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"train": {"lr": -1}}, "greater than 0"),
        ({"train": {"lr": float("nan")}}, "finite|greater"),
        ({"train": {"steps": "many"}}, "integer"),
        ({"model": {"from": None}}, "one of from"),
        ({"tokenizer": {"from": "m", "train": "bpe"}}, "not both"),
        ({"data": {"hold_out": {"valid": 0.5, "test": 0.5}}}, "nothing to train on"),
        ({"objective": {"kind": "masked", "mask": 0.9, "random": 0.2}}, "at most 1"),
        ({"objective": {"kind": "unknown"}}, "kind"),
        ({"batch": {"packing": "blocks"}}, "packing needs a length"),
        ({"batch": {"sequences": None}}, "one of sequences"),
        ({"train": {"steps": None}}, "one of steps"),
        ({"data": {"hold_out": {"by": ()}}}, "by names no field"),
    ],
)
def test_what_is_wrong(change, says):
    with pytest.raises(ValidationError, match=says):
        recipe(**change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer": {"from": "m", "vocab": 9}}, "vocab has no effect, .*leave vocab out, or say train"),
        ({"tokenizer": {"lowercase": True}}, "lowercase has no effect, .*leave lowercase out"),
        ({"data": {"format": "jsonl", "document": "file"}}, "document has no effect, .*format is 'jsonl': leave docu"),
        ({"data": {"format": "text", "header": False}}, "header has no effect, .*leave header out"),
        ({"train": {"schedule": {"kind": "cosine", "decay": 0.3}}}, 'kind is "cosine": leave decay out'),
        ({"eval": {"patience": 2}}, "one evaluation, at the end: leave patience out, or say every"),
        (
            {"batch": {"packing": "blocks", "length": 9}, "objective": {"on_long": "drop"}},
            "leave objective.on_long out, or say batch.packing",
        ),
    ],
)
def test_settings_without_effect_are_wrong(change, says):
    with pytest.raises(ValidationError, match=says):
        recipe(**change)


def test_defaults_may_be_spelled_out():
    said = recipe().model_dump(by_alias=True)
    assert said["train"]["schedule"]["decay"] == 0.2
    assert Recipe.model_validate(said) == recipe()


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {"train": "bpe", "vocab": 9, "lowercase": True}},
        {"data": {"document": "file", "header": False}},
        {"data": {"format": "tsv", "header": False}},
        {"train": {"schedule": {"kind": "wsd", "decay": 0.3}}},
        {"eval": {"every": 5, "patience": 2}},
        {"eval": {"best": "loss"}},
        {"data": {"hold_out": {"valid": 0.1, "by": ("a", "b")}}},
    ],
)
def test_settings_with_effect(change):
    recipe(**change)


@pytest.mark.parametrize("section", ["model", "train", "batch"])
def test_one_way_to_say_it(section):
    twice = {"model": {"config": {}}, "train": {"minutes": 1}, "batch": {"tokens": 5}}[section]
    data = {**LEAST, section: {**LEAST[section], **twice}}
    with pytest.raises(ValidationError, match="say one of"):
        Recipe.model_validate(data)
