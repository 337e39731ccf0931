"""What counts as touched: every way to make a model do something else than its parts say."""

from typing import Any

import pytest
from torch import nn

from qkv.nn.stack import Transformer
from qkv.nn.untouched import touched
from tests.generate.tiny import model_spec


class Own(Transformer):
    def logits(self, states: Any) -> Any:
        return states


class Facade(Transformer):
    """A subclass that adds to it."""

    def more(self) -> None: ...


@pytest.mark.parametrize("kind", [Transformer, Facade])
def test_a_model_as_it_is_made(kind: type[Transformer]) -> None:
    assert touched(kind(model_spec())) is None


def test_own_steps() -> None:
    assert touched(Own(model_spec())) == "Own has steps of its own"


@pytest.mark.parametrize("what", ["hook", "pre-hook", "forward", "states", "attend"])
def test_each_way_in(what: str) -> None:
    model = Transformer(model_spec())
    assert model.decoder is not None
    part: Any = model.decoder.blocks[0].mlp
    if what == "hook":
        part.register_forward_hook(lambda *_: None)
    elif what == "pre-hook":
        part.register_forward_pre_hook(lambda *_: None)
    elif what == "forward":
        part.forward = lambda x: x
    elif what == "states":
        model.states = model.states  # type: ignore[method-assign]
    else:
        model.decoder.blocks[0].mixer.attend = nn.Identity()  # type: ignore[union-attr, assignment]
    assert touched(model) is not None
