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
    ],
)
def test_what_is_wrong(change, says):
    with pytest.raises(ValidationError, match=says):
        recipe(**change)


@pytest.mark.parametrize("section", ["model", "train", "batch"])
def test_one_way_to_say_it(section):
    twice = {"model": {"config": {}}, "train": {"minutes": 1}, "batch": {"tokens": 5}}[section]
    data = {**LEAST, section: {**LEAST[section], **twice}}
    with pytest.raises(ValidationError, match="say one of"):
        Recipe.model_validate(data)
