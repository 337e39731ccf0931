"""What config.json says of packed weights: read strictly, held against what is stored, and written back."""

from typing import Any, NamedTuple

import pytest

from qkv.errors import ConfigError, InputError, WeightError
from qkv.load.scheme import Scheme, packed_kinds, read_scheme, scheme_of

INT4 = {"quant_method": "qkv", "scheme": "int4", "bits": 4, "group_size": 32, "exceptions": {}}


class Info(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


def test_what_is_written_is_read() -> None:
    for scheme in (Scheme("int4"), Scheme("int8", {"b": "plain", "a": "int4"})):
        assert read_scheme(scheme.config(), "here") == scheme
    assert Scheme("int4").config() == INT4
    assert read_scheme(None, "here") is None


def test_a_scheme_is_what_most_matrices_have() -> None:
    scheme = scheme_of({"a": "Q4_1", "b": "Q4_1", "c": "Q8_0"}, ["d"])
    assert scheme == Scheme("int4", {"c": "int8", "d": "plain"})
    assert [scheme.kind(name, 2) for name in "acd"] == ["Q4_1", "Q8_0", None]
    assert scheme.kind("a", 1) is None
    assert scheme.words == "int4 in groups of 32"
    with pytest.raises(InputError, match=r"holds Q4_0, Q6_K blocks, .*Q8_0 and Q4_1 packed.*dequantize=True"):
        scheme_of({"a": "Q6_K", "b": "Q4_0", "c": "Q4_1"}, [])


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4", None, 4])
def test_other_tools_are_refused_with_a_way_out(method: Any) -> None:
    with pytest.raises(ConfigError) as error:
        read_scheme({"quant_method": method, "bits": 4, "desc_act": True}, "config.json")
    assert str(error.value).startswith(f"config.json: quantization_config is of the method {method!r}")
    assert "`qkv quantize` the checkpoint" in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"desc_act": False}, "nothing else; see desc_act"),
        ({"scheme": "int3"}, "'int3', which is not one of int8, int4"),
        ({"scheme": ["int4"]}, "which is not one of"),
        ({"bits": 8}, "bits = 8, and int4 has 4"),
        ({"bits": 4.0}, "bits = 4.0"),
        ({"group_size": 128}, "group_size = 128, and int4 has 32"),
        ({"exceptions": ["a"]}, "exceptions must map tensors to int8, int4, plain"),
        ({"exceptions": {"a": "float32"}}, "exceptions must map"),
        ({"exceptions": {"a": 8}}, "exceptions must map"),
    ],
)
def test_what_is_not_known_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_scheme({**INT4, **change}, "config.json")
    assert said in str(error.value)


@pytest.mark.parametrize("missing", ["scheme", "bits", "group_size", "exceptions"])
def test_nothing_is_assumed(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"see {missing}"):
        read_scheme({key: value for key, value in INT4.items() if key != missing}, "config.json")
    with pytest.raises(ConfigError, match="must be an object"):
        read_scheme("int4", "config.json")


STORED = {"a": Info("U8", (8, 40)), "b": Info("U8", (8, 34)), "c": Info("F32", (8, 8)), "d": Info("BF16", (8,))}
SCHEME = Scheme("int4", {"b": "int8", "c": "plain"})


def test_what_is_stored_is_held_against_the_scheme() -> None:
    assert packed_kinds("here", STORED, SCHEME) == {"a": "Q4_1", "b": "Q8_0"}
    assert packed_kinds("here", {"mask": Info("U8", (1, 1, 4, 4)), "w": Info("F32", (2, 2))}, None) == {}


@pytest.mark.parametrize(
    ("stored", "scheme", "said"),
    [
        (STORED, None, "here: a, b hold bytes, as packed weights do, and config.json has no quantization_config"),
        ({**STORED, "a": Info("F32", (8, 64))}, SCHEME, "here: a is stored as F32; by the config's quantization"),
        ({**STORED, "c": Info("U8", (8, 8))}, SCHEME, "here: c holds bytes, and by the config's"),
        ({**STORED, "d": Info("U8", (8,))}, SCHEME, "here: d holds bytes"),
        ({**STORED, "a": Info("U8", (8, 41))}, SCHEME, "here: a has the shape [8, 41]; int4 needs rows of 20-byte"),
        ({**STORED, "a": Info("U8", (8, 1, 40))}, SCHEME, "here: a has the shape [8, 1, 40]"),
        ({**STORED, "b": Info("U8", (8, 40))}, SCHEME, "here: b has the shape [8, 40]; int8 needs rows of 34-byte"),
        ({"d": STORED["d"]}, Scheme("int4"), "config.json has a quantization_config, and no tensor is packed"),
        (STORED, Scheme("int4", {**SCHEME.exceptions, "z": "plain"}), "makes exceptions of z, and no tensor"),
    ],
)
def test_what_does_not_fit_is_refused(stored: dict[str, Info], scheme: Scheme | None, said: str) -> None:
    with pytest.raises(WeightError) as error:
        packed_kinds("here", stored, scheme)
    assert said in str(error.value)
