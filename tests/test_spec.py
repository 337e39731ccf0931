"""Specs: frozen, hashable, and right or not there at all."""

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import ConfigError
from qkv.part import number
from qkv.spec import RMS, Attention, Block, Causal, Gated, LMHead, Model, Rotary, Stack, Window
from tests.tiny import tiny_spec

GOOD: list[spec.Part] = [
    spec.Learned(8),
    spec.Sinusoidal(),
    spec.LinearScaling(2.0),
    spec.NTKScaling(2.0),
    spec.DynamicNTKScaling(2.0),
    spec.Yarn(2.0),
    spec.Llama3Scaling(2.0),
    Rotary(dims=2, scaling=spec.LinearScaling(2.0)),
    spec.Alibi(),
    spec.RelativeBias(),
    spec.Full(),
    Causal(),
    Window(4),
    spec.LayerNorm(),
    RMS(),
    spec.Plain(8),
    Gated(8, "silu"),
    Attention(4, 2),
    tiny_spec().decoder.blocks[0],
    spec.Embed(spec.Learned(8), norm=RMS()),
    tiny_spec().decoder,
    LMHead(),
    spec.MaskedLM(spec.LayerNorm()),
    spec.States(),
    spec.Pool(),
    spec.Classify(("yes", "no")),
    spec.Tag(("O", "B-PER")),
    spec.Span(),
    spec.Replaced(),
    spec.Heads((spec.MaskedLM(spec.LayerNorm()), spec.Classify(("next", "not")))),
    tiny_spec(),
]
FIELDS = [(part, f.name) for part in GOOD for f in dataclasses.fields(part)]


def test_every_kind_of_the_library_is_here() -> None:
    own = {kind for kind in spec.Part.kinds.values() if kind.__module__ == "qkv.spec"}
    bases = {base for kind in own for base in kind.__mro__[1:]}
    assert own - bases == {type(part) for part in GOOD}


@pytest.mark.parametrize("part", GOOD, ids=lambda part: type(part).__name__)
def test_frozen_hashable_equal_by_value(part: spec.Part) -> None:
    same = dataclasses.replace(part)
    assert same is not part
    assert same == part
    assert {part: 1}[same] == 1
    for f in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, f.name, getattr(part, f.name))


# --- every field, every wrong value ---------------------------------------------------------------------------------


def takes(hint: Any, value: object) -> bool:
    """Is this a value of the hinted type? (Python's bool is an int: not here. An int is a good float.)"""
    if get_origin(hint) in (types.UnionType, Union):
        return any(takes(h, value) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and bool(value) and all(takes(get_args(hint)[0], v) for v in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return value is None if hint is types.NoneType else isinstance(value, hint)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.sampled_from(GOOD),
    st.lists(st.sampled_from(GOOD), max_size=2),
    st.lists(st.sampled_from(GOOD), max_size=2).map(tuple),
    st.sampled_from([Causal, "silu ", "PRE", "2", [1], {}, (), float("inf"), float("nan"), 2**70, -1, 0, 0.0, -0.5]),
)


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(part: spec.Part, name: str) -> None:
    hint = get_type_hints(type(part))[name]
    limits = next(f.metadata for f in dataclasses.fields(part) if f.name == name)

    @settings(max_examples=25)
    @given(ANYTHING)
    def anything(value: Any) -> None:
        fits = takes(hint, value)
        if fits and "low" in limits and value is not None:
            fits = limits["low"] <= value <= limits["high"]
        if fits:
            return  # what several fields say together is tested below
        with pytest.raises(ConfigError) as caught:
            dataclasses.replace(part, **{name: value})
        said = str(caught.value)
        assert said.startswith(f"{type(part).__name__}.{name} must ")
        assert said.endswith(f"got {value!r}")

    anything()


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_limits_are_on_the_edge(part: spec.Part, name: str) -> None:
    limits = next(f.metadata for f in dataclasses.fields(part) if f.name == name)
    whole = int in (get_type_hints(type(part))[name], *get_args(get_type_hints(type(part))[name]))
    for edge, step in ((limits.get("low"), -1), (limits.get("high"), 1)):
        if edge is not None:
            beyond = edge + step if whole else math.nextafter(edge, step * math.inf)
            with pytest.raises(ConfigError, match=rf"{name} must lie in"):
                dataclasses.replace(part, **{name: beyond})


def test_messages_say_what_is_taken() -> None:
    cases: dict[str, Any] = {
        "Window.size must be a whole number, got 2.5": lambda: Window(2.5),  # type: ignore[arg-type]
        "Window.size must lie in 1..1073741824, got 0": lambda: Window(0),
        "RMS.eps must be a finite number, got nan": lambda: RMS(math.nan),
        "RMS.one_plus must be true or false, got 1": lambda: RMS(one_plus=1),  # type: ignore[arg-type]
        "Model.family must be text, got 3": lambda: dataclasses.replace(tiny_spec(), family=3),  # type: ignore[arg-type]
        "Attention.mask must be Mask, got 'causal'": lambda: Attention(4, 4, mask="causal"),  # type: ignore[arg-type]
        "Stack.blocks must be a tuple of Block, got ()": lambda: Stack((), 1),
        "Rotary.dims must be a whole number, got '8'": lambda: Rotary(dims="8"),  # type: ignore[arg-type]
    }
    for said, make in cases.items():
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == said


# --- what several fields say together -------------------------------------------------------------------------------


def model(mixer: spec.Mixer, dim: int = 16) -> Model:
    return Model(31, dim, Stack((Block(mixer, Gated(24), RMS()),), layers=2))


WRONG: dict[str, Any] = {
    "Attention.kv_heads must divide heads (4), got 3": lambda: Attention(4, 3),
    "Attention.kv_heads must divide heads (4), got 8": lambda: Attention(4, 8),
    "Attention.heads must divide dim (16), got 3": lambda: model(Attention(3, 3)),
    "Attention.heads must divide dim (16), got 32": lambda: model(Attention(32, 1)),
    "Rotary.dims must be even, got 3": lambda: Rotary(dims=3),
    "Rotary.dims must be at most the head's 4, got 6": lambda: model(Attention(4, 4, position=Rotary(dims=6))),
    "Rotary.dims is the head's 5 here and must be even": lambda: model(Attention(4, 4, head_dim=5, position=Rotary())),
    "Llama3Scaling.high must be above low (4.0), got 4.0": lambda: spec.Llama3Scaling(8.0, low=4.0, high=4.0),
    "RelativeBias.distance must be above the 16 that have buckets of their own": lambda: spec.RelativeBias(32, 16),
    "Stack.blocks has 2 blocks for 1 layers": lambda: Stack(model(Attention(4, 4)).decoder.blocks * 2, 1),
    "LMHead.tied must be false: the table's rows are 8 wide, the states 16": lambda: dataclasses.replace(
        model(Attention(4, 4)), decoder=Stack((Block(Attention(4, 4), Gated(24), RMS()),), 2, embed=spec.Embed(width=8))
    ),
    "Model.decoder or encoder must be there": lambda: Model(31, 16),
    "Model.decoder must have blocks with cross-attention exactly where there is an encoder": lambda: (
        dataclasses.replace(model(Attention(4, 4)), encoder=model(Attention(4, 4)).decoder)
    ),
    "Block.place must be 'pre' or 'post' beside cross-attention, got 'parallel'": lambda: Block(
        Attention(4, 4), Gated(24), RMS(), "parallel", cross=Attention(4, 4, mask=spec.Full())
    ),
    "Attention.mask must be Full, and position None: the encoder's states are another sequence": lambda: Block(
        Attention(4, 4), Gated(24), RMS(), cross=Attention(4, 4)
    ),
    "Stack.position serves all layers: their attention must be alike, without one of its own": lambda: Stack(
        (Block(Attention(4, 4, position=Rotary()), Gated(24), RMS()),), 2, position=Rotary()
    ),
}


@pytest.mark.parametrize("said", WRONG)
def test_parts_that_do_not_fit_each_other(said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WRONG[said]()
    assert str(caught.value) == said


def test_parts_that_do() -> None:
    model(Attention(3, 1, head_dim=6, position=Rotary(dims=6)))
    model(Attention(4, 4, head_dim=5, position=Rotary(dims=4)))
    spec.RelativeBias(32, 16, both_ways=True)


def test_a_wrong_block_is_found_wherever_it_stands() -> None:
    good, bad = (Block(Attention(heads, 1), Gated(24), RMS()) for heads in (4, 3))
    with pytest.raises(ConfigError, match=r"Attention\.heads"):
        Model(31, 16, Stack((good, good, bad), layers=6))


# --- small things ---------------------------------------------------------------------------------------------------


def test_blocks_take_turns() -> None:
    blocks = tuple(Block(Attention(4, 4, mask=mask), Gated(8), RMS()) for mask in (Window(2), Window(2), Causal()))
    masks = [block.mixer.mask for block in Stack(blocks, layers=5) if isinstance(block.mixer, Attention)]
    assert masks == [Window(2), Window(2), Causal(), Window(2), Window(2)]


def test_head_width() -> None:
    assert Attention(4, 2).head_width(16) == 4
    assert Attention(4, 2, head_dim=10).head_width(16) == 10


def test_a_part_of_ones_own_is_checked_alike() -> None:
    @dataclass(frozen=True)
    class Mine(spec.Mask):
        size: int = number(1, 9, default=3)
        name: str = "x"

        def check(self) -> None:
            if self.name == "y" and self.size > 5:
                raise self.wrong("size", "is too much for y")

    assert spec.Part.kinds["Mine"] is Mine
    assert Attention(4, 4, mask=Mine()).mask == Mine(3)
    for values, said in (
        ({"size": 10}, r"Mine\.size must lie in 1\.\.9"),
        ({"name": 1}, r"Mine\.name must be text"),
        ({"name": "y", "size": 6}, r"Mine\.size is too much for y"),
    ):
        with pytest.raises(ConfigError, match=said):
            Mine(**values)  # type: ignore[arg-type]
