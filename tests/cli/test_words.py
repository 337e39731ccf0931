"""A spec in words says all of it: no two different models read the same."""

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given, settings

from qkv import spec
from qkv.cli.known import names, sketch
from qkv.cli.words import lines
from qkv.errors import ConfigError
from qkv.spec import RMS, Attention, Block, Gated, Model, Stack
from tests.test_specfile import models


def same(a: Model, b: Model) -> bool:
    """Equal, however often a pattern of equal blocks was written."""
    one, other = (
        dataclasses.replace(m, decoder=dataclasses.replace(m.decoder, blocks=tuple(m.decoder))) for m in (a, b)
    )
    return one == other


def fields(part: spec.Part) -> list[tuple[spec.Part, str]]:
    """Every (part, field) in a tree."""
    out = []
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        out.append((part, f.name))
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, spec.Part):
                out += fields(inner)
    return out


def replaced(tree: object, part: spec.Part, name: str, value: object) -> object:
    """The tree with one field of one part changed."""
    if tree is part:
        return dataclasses.replace(part, **{name: value})
    if isinstance(tree, tuple):
        return tuple(replaced(t, part, name, value) for t in tree)
    if isinstance(tree, spec.Part):
        changed = {f.name: replaced(getattr(tree, f.name), part, name, value) for f in dataclasses.fields(tree)}
        return dataclasses.replace(tree, **changed)
    return tree


def near(value: object) -> list[object]:
    """Other values for a field that holds this one."""
    if isinstance(value, bool):
        return [not value]
    return [value + 1, value - 1] if isinstance(value, int) else [value / 2, 0.5] if isinstance(value, float) else []


@settings(max_examples=8)
@given(models)
def test_every_field_shows(model: Model) -> None:
    """Change any flag or number of a model: its words change too."""
    for part, name in fields(model):
        for value in near(getattr(part, name)):
            try:
                changed = replaced(model, part, name, value)
            except ConfigError:  # beyond the field's limits
                continue
            assert isinstance(changed, Model)
            assert same(model, changed) or lines(model) != lines(changed), (part, name)


def test_patterns_are_said_once_a_place() -> None:
    words = dict(lines(sketch("gemma-3-1b").spec))
    assert words["mask"] == "layers 1–5 of every 6: causal, the last 512 tokens\nlayer 6 of every 6: causal"
    assert words["layers"] == "26"


@pytest.mark.parametrize("name", names())
def test_well_known_models_are_in_plain_words(name: str) -> None:
    """No Python, no dataclass: every part of a published model has words of its own."""
    text = "\n".join(f"{aspect} {words}" for aspect, words in lines(sketch(name).spec))
    assert "(base=" not in text
    assert "=" not in text


def test_a_part_of_ones_own_shows_as_it_is() -> None:
    @dataclass(frozen=True)
    class Sum(spec.Mixer):
        over: int = 3

    model = Model(9, 8, Stack((Block(Sum(over=5), Gated(4), RMS()),), 1))
    words = dict(lines(model))
    assert (words["attention"], words["position"], words["mask"]) == ("Sum(over=5)", "none", "none")
    heads = dataclasses.replace(model.decoder.blocks[0], mixer=Attention(4, 4))
    assert (
        dict(lines(dataclasses.replace(model, decoder=Stack((heads,), 1))))["attention"] == "4 heads of 2 · multi-head"
    )
