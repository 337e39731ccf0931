"""Reading keys strictly."""

import pytest

from qkv.errors import ConfigError
from qkv.families.config import Reader


def test_every_key_is_taken_or_named() -> None:
    reader = Reader({"size": 4, "rate": 0.5, "more": 1, "bos_token_id": 3}, "test")
    assert (reader.whole("size"), reader.number("rate")) == (4, 0.5)
    with pytest.raises(ConfigError, match=r"test config: qkv doesn't understand more = '1'"):
        reader.done()
    reader.ignore("more")
    reader.done()


def test_absent_and_null() -> None:
    reader = Reader({"null": None}, "test")
    assert reader.whole("absent", default=8) == 8
    assert reader.whole("null", default=8) == 8
    assert reader.whole("null", default=8, null=None) is None
    assert reader.whole("absent", default=8, null=None) == 8
    with pytest.raises(ConfigError, match="'absent' is missing"):
        reader.whole("absent")
    with pytest.raises(ConfigError, match="'null' is null"):
        reader.number("null")


def test_two_names_of_one_key() -> None:
    assert Reader({"new": 4}, "test").whole("new", "old") == 4
    assert Reader({"old": 4}, "test").whole("new", "old") == 4
    assert Reader({"new": None, "old": 4}, "test").whole("new", "old") == 4
    assert Reader({"new": 4, "old": 4}, "test").whole("new", "old") == 4
    with pytest.raises(ConfigError, match=r"'new' is said twice, as 4 and 5 \(new, old\)"):
        Reader({"new": 4, "old": 5}, "test").whole("new", "old")


@pytest.mark.parametrize("value", [0, 2**31, 1.0, "1", True, [1]])
def test_a_whole_number_within_limits(value: object) -> None:
    with pytest.raises(ConfigError, match=r"'x' must be a whole number in 1\.\."):
        Reader({"x": value}, "test").whole("x")


@pytest.mark.parametrize("value", [-1, 2, "1", True, float("nan"), float("inf"), 10**400])
def test_a_number_within_limits(value: object) -> None:
    with pytest.raises(ConfigError, match=r"'x' must be a number in 0\.\.1, got"):
        Reader({"x": value}, "test").number("x", high=1.0)


@pytest.mark.parametrize("value", [1, 0, "true", []])
def test_a_flag(value: object) -> None:
    with pytest.raises(ConfigError, match="'x' must be true or false"):
        Reader({"x": value}, "test").flag("x")


@pytest.mark.parametrize("value", [3, "c", ["a"], {}])
def test_a_choice(value: object) -> None:
    with pytest.raises(ConfigError, match="'x' must be one of a, b"):
        Reader({"x": value}, "test").choice("x", options={"a": 1, "b": 2})
    assert Reader({}, "test").choice("x", options={"a": 1}, default="a") == 1


def test_only() -> None:
    reader = Reader({"zero": 0, "no": False}, "test")
    reader.only("absent", 1)
    reader.only("no", None, False)
    with pytest.raises(ConfigError, match="'no' is False, but only 0 or None is supported"):
        reader.only("no", 0, None)
    with pytest.raises(ConfigError, match="'zero' is 0, but only False"):
        reader.only("zero", False)


def test_a_section() -> None:
    reader = Reader({"a": {"b": 1}, "c": [1]}, "test")
    assert reader.section("a").whole("b") == 1
    assert reader.section("absent").config == {}
    with pytest.raises(ConfigError, match="'a' has keys that qkv doesn't understand: b"):
        reader.section("a", allowed=("x",))
    with pytest.raises(ConfigError, match="'c' must be an object"):
        reader.section("c")
    with pytest.raises(ConfigError, match="test a config: 'd' is missing"):
        reader.section("a").whole("d")
