"""A model is in the mode it was in, whatever happened inside."""

import pytest
from torch import nn

from qkv.nn.modes import evaluating


def test_each_part_is_afterwards_in_the_mode_it_was_in() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_an_evaluating_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Dropout()).eval()
    model[0].train()
    with evaluating(model):
        assert model[0].training
