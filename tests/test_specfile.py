"""Specs survive every way of writing them down, and a diff says exactly where two of them part."""

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import ConfigError
from qkv.families import family
from qkv.spec import RMS, Attention, Block, Causal, Gated, LMHead, Model, Plain, Rotary, Stack, Window
from qkv.specfile import Change, diff, from_dict, from_json, from_toml, say, to_dict, to_json, to_toml

# --- random specs: every kind and field there is, drawn from the type hints and limits of spec.py ---


def kinds_of(base: type[spec.Part]) -> list[type[spec.Part]]:
    """The concrete kinds that fit a field of type `base`."""
    own = [k for k in spec.Part.kinds.values() if k.__module__ == "qkv.spec" and issubclass(k, base)]
    return [k for k in own if not any(o is not k and issubclass(o, k) for o in own)]


def values(hint: Any, low: Any, high: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0], low, high), min_size=1, max_size=3).map(tuple)
    if get_origin(hint) in (types.UnionType, Union):
        return st.one_of(*(values(h, low, high) for h in get_args(hint)))
    if hint is types.NoneType:
        return st.none()
    if hint is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if hint is int:
        return st.integers(low, high)
    if issubclass(hint, spec.Part):
        return st.one_of(*map(parts, kinds_of(hint)))
    return {bool: st.booleans(), str: st.text()}[hint]


LABELS = st.lists(st.text(), min_size=1, max_size=3, unique=True).map(tuple)
SPECIAL: dict[type[spec.Part], dict[str, st.SearchStrategy[Any]]] = {  # what no single field's limits say
    Attention: {"heads": st.sampled_from([4, 8]), "kv_heads": st.sampled_from([1, 2, 4]), "head_dim": st.just(2**16)},
    Rotary: {"dims": st.none() | st.integers(1, 2**15).map(lambda n: 2 * n)},
    spec.RelativeBias: {"distance": st.integers(2**15 + 1, 2**24)},
    spec.Llama3Scaling: {"low": st.floats(0.1, 1.0), "high": st.floats(1.5, 9.0)},
    spec.Block: {"cross": st.none()},
    spec.Embed: {"width": st.none()},  # beside which a head can't be tied; ALBERT has one, below
    Stack: {"layers": st.integers(3, 4096), "position": st.none()},
    spec.Classify: {"labels": LABELS},
    spec.Tag: {"labels": LABELS},
    spec.Heads: {"heads": st.lists(st.deferred(lambda: one_head), min_size=1, max_size=2).map(tuple)},
    Model: {"dim": st.just(64), "encoder": st.none(), "decoder": st.deferred(lambda: parts(Stack))},
}


def parts(kind: type[spec.Part]) -> st.SearchStrategy[Any]:
    hints, own = get_type_hints(kind), SPECIAL.get(kind, {})
    drawn = {
        f.name: values(hints[f.name], f.metadata.get("low"), f.metadata.get("high"))
        for f in dataclasses.fields(kind)
        if f.name not in own
    }
    return st.builds(kind, **drawn, **own)


one_head = st.deferred(lambda: parts(LMHead) | parts(spec.MaskedLM) | parts(spec.Classify) | parts(spec.Pool))


def with_encoder(model: Model) -> Model:
    """The same behind an encoder, which its blocks look at."""
    assert model.decoder is not None
    cross = Attention(4, 2, mask=spec.Full(), head_dim=8)
    blocks = tuple(dataclasses.replace(block, place="post", cross=cross) for block in model.decoder.blocks)
    decoder = dataclasses.replace(model.decoder, blocks=blocks)
    return dataclasses.replace(model, decoder=decoder, encoder=model.decoder, start=3)


models = st.deferred(lambda: parts(Model) | parts(Model).map(with_encoder))


@settings(max_examples=60, deadline=None)
@given(models)
def test_every_way_of_writing_reads_back(model: Model) -> None:
    assert from_dict(to_dict(model)) == model
    assert from_json(to_json(model)) == model
    assert from_toml(to_toml(model)) == model


@settings(max_examples=60, deadline=None)
@given(models, models)
def test_a_diff_is_empty_only_for_equals(a: Model, b: Model) -> None:
    assert diff(a, a) == []
    assert bool(diff(a, b)) == (a != b)
    mirrored = [Change(c.path, c.right, c.left) for c in diff(b, a)]
    assert sorted(map(str, diff(a, b))) == sorted(map(str, mirrored))


@pytest.mark.parametrize("name", family.names())
def test_every_family_reads_back(name: str) -> None:
    known = family.find(name)
    for change in ({}, *known.variants.values()):
        model = known.spec({**known.tiny, **change})
        assert from_json(to_json(model)) == model
        assert from_toml(to_toml(model)) == model


# --- what it looks like ---


def llama(**changes: Any) -> Model:
    mixer = Attention(heads=9, kv_heads=3, position=Rotary(base=1e5))
    block = Block(mixer, Gated(1536, "silu"), RMS(1e-5))
    model = Model(49152, 576, Stack((block,), layers=30, norm=RMS(1e-5)), context=8192, family="llama")
    return dataclasses.replace(model, **changes)


def test_toml_is_what_a_person_would_write() -> None:
    assert to_toml(llama()) == (
        'kind = "Model"\n'
        "vocab = 49152\n"
        "dim = 576\n"
        "context = 8192\n"
        'family = "llama"\n'
        "\n"
        "[decoder]\n"
        'kind = "Stack"\n'
        "layers = 30\n"
        'norm = { kind = "RMS" }\n'
        "\n"
        "[[decoder.blocks]]\n"
        'kind = "Block"\n'
        'mlp = { kind = "Gated", width = 1536, activation = "silu" }\n'
        'norm = { kind = "RMS" }\n'
        "\n"
        "[decoder.blocks.mixer]\n"
        'kind = "Attention"\n'
        "heads = 9\n"
        "kv_heads = 3\n"
        'position = { kind = "Rotary", base = 100000.0 }\n'
    )


def test_values_in_words() -> None:
    assert say(Rotary(base=1e5, dims=32)) == "Rotary(base=100000, dims=32)"
    assert (say(None), say(True), say(1e-5), say((1, 2.0))) == ("none", "yes", "1e-05", "(1, 2)")


# --- parts of one's own ---


@dataclass(frozen=True)
class Oddity(spec.Mixer):
    """A user's part with everything that TOML makes difficult."""

    text: str = 'a "quoted"\n\x7f line'
    optional: int | None = 5
    required: float | None = None
    nested: tuple[tuple[int, ...], ...] = ((1,),)
    parts: tuple[spec.Norm, ...] = (RMS(),)


@settings(max_examples=60, deadline=None)
@given(parts(Oddity), st.just(None) | st.integers())
def test_parts_of_ones_own(part: Oddity, optional: int | None) -> None:
    part = dataclasses.replace(part, optional=optional)
    assert from_toml(to_toml(part)) == part
    assert from_json(to_json(part)) == part


def test_a_name_that_two_classes_share_is_refused() -> None:
    @dataclass(frozen=True)
    class Twice(spec.Norm):
        pass

    first = Twice()

    @dataclass(frozen=True)
    class Twice(spec.Norm):  # type: ignore[no-redef]
        pass

    with pytest.raises(ConfigError, match="two kinds of part are named Twice"):
        to_dict(first)
    assert from_dict(to_dict(Twice())) == Twice()


def test_a_field_called_kind_is_refused() -> None:
    @dataclass(frozen=True)
    class Kindly(spec.Norm):
        kind: str = "x"

    with pytest.raises(ConfigError, match=r"Kindly\.kind can't be saved"):
        to_dict(Kindly())


# --- wrong input ---

WRONG = [
    ("{}", "a part needs a 'kind' (it has nothing)"),
    ('{"kind": "RSM"}', "there is no part of kind 'RSM'; did you mean 'RMS'?"),
    ('{"kind": ["RMS"]}', "there is no part of kind ['RMS']"),
    ('{"kind": "RMS", "epsilon": 1}', "RMS has no field 'epsilon'; did you mean 'eps'?"),
    ('{"kind": "Attention", "heads": 4}', "Attention.kv_heads is missing"),
    ('{"kind": "Attention", "heads": 4, "kv_heads": 3}', "Attention.kv_heads must divide heads (4), got 3"),
    ('{"kind": "RMS", "eps": NaN}', "RMS.eps must be a finite number, got nan"),
    ('{"kind": "RMS", "eps": 1, "eps": 2}', "key 'eps' appears twice"),
    ('{"kind": "Gated", "width": "8"}', "Gated.width must be a whole number, got '8'"),
    ("[]", "a spec must be a JSON object, not list"),
    ("{", "a spec is not valid JSON: "),
    ('{"kind":' * 100_000, "nested too deep"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_wrong_json_says_what(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_json(text)
    assert message in str(error.value)


def test_wrong_toml_says_where() -> None:
    text = to_toml(llama())
    with pytest.raises(ConfigError, match=r"blocks\[0\]\.mixer: Attention has no field 'kvheads'; did you mean"):
        from_toml(text.replace("kv_heads", "kvheads"))
    with pytest.raises(ConfigError, match=r"decoder\.blocks\[0\]\.mixer: Attention\.heads must lie in 1\.\.65536"):
        from_toml(text.replace("heads = 9", "heads = 0"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        from_toml("kind = ")


# --- diff ---


def block(**changes: Any) -> Block:
    return dataclasses.replace(llama().decoder.blocks[0], **changes)


def stack(*blocks: Block, layers: int) -> Stack:
    return Stack(blocks, layers)


LOCAL = block(mixer=Attention(heads=9, kv_heads=3, position=Rotary(base=1e5), mask=Window(16)))


def test_a_changed_field_has_its_path() -> None:
    mixer = dataclasses.replace(block().mixer, kv_heads=9)
    other = llama(decoder=dataclasses.replace(llama().decoder, blocks=(block(mixer=mixer),)), head=LMHead(tied=False))
    assert diff(llama(), other) == [
        Change("decoder.blocks[0].mixer.kv_heads", 3, 9),
        Change("head.tied", True, False),
    ]
    assert list(map(str, diff(llama(), other))) == ["decoder.blocks[0].mixer.kv_heads: 3 → 9", "head.tied: yes → no"]


def test_another_kind_of_part_is_one_change() -> None:
    found = diff(block(), block(mlp=Plain(1536, "gelu"), mixer=dataclasses.replace(block().mixer, position=None)))
    assert found == [
        Change("mixer.position", Rotary(base=1e5), None),
        Change("mlp", Gated(1536, "silu"), Plain(1536, "gelu")),
    ]
    assert str(diff(RMS(), Causal())[0]) == "spec: RMS() → Causal()"


def test_patterns_of_blocks_are_compared_place_by_place() -> None:
    plain, pair = stack(block(), layers=4), stack(LOCAL, block(), layers=4)
    assert diff(plain, pair) == [Change("blocks[0].mixer.mask", Causal(), Window(16))]
    six = stack(*[LOCAL] * 5, block(), layers=12)
    assert [c.path for c in diff(stack(block(), layers=12), six)] == ["blocks[0-4].mixer.mask"]
    assert [c.path for c in diff(pair, six)] == ["blocks[1,3].mixer.mask", "layers"]
    wide = stack(*[block(mlp=Gated(2048, "silu"))] * 2, layers=4)
    assert diff(plain, wide) == [Change("blocks[0-1].mlp.width", 1536, 2048)]


def test_one_block_written_twice_is_still_a_difference() -> None:
    once, twice = stack(block(), layers=4), stack(block(), block(), layers=4)
    assert [c.path for c in diff(once, twice)] == ["blocks"]
