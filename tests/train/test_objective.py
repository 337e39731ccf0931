"""Objectives: each of a recipe's has its class, and says what it reads."""

import typing

import pytest

from qkv.train import objectives, recipe
from qkv.train.objective import OBJECTIVES

KINDS = typing.get_args(typing.get_args(recipe.AnyObjective)[0])


@pytest.mark.parametrize("settings", KINDS, ids=lambda kind: kind.__name__)
def test_every_objective_of_a_recipe_is_there(settings):
    assert objectives.make
    cls = OBJECTIVES[settings]
    assert cls.fields
    assert not set(cls.fields) & set(cls.optional)
    assert cls.__doc__
