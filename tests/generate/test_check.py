"""Checks of values: what is taken, and what the error says."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from qkv.errors import InputError
from qkv.generate import check


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check.whole("n", 1.5, 0, 3), r"n must be a whole number from 0 to 3, got 1\.5"),
        (lambda: check.whole("n", True, 0, 3, "None or "), "n must be None or a whole number from 0 to 3, got True"),
        (lambda: check.whole("n", 4, 0, 3), "got 4"),
        (lambda: check.number("x", math.nan, 0, 1), "x must be a number from 0 to 1, got nan"),
        (lambda: check.number("x", "1", 0, 1), "got '1'"),
        (lambda: check.flag("f", 1), "f must be True or False, got 1"),
        (lambda: check.tuple_of("t", "ab"), "t must be a list, got 'ab'"),
        (lambda: check.tuple_of("t", True, int), "t must be a list, got True"),
        (lambda: check.ids("i", (1, 2, 3), 2), "i may hold 2 ids, got 3"),
        (lambda: check.ids("i", (-1,), 2), "i must be a whole number from 0"),
        (lambda: check.biases("b", 5, 2, 1), r"b must be \{token id: number\}, got 5"),
        (lambda: check.biases("b", {1: 0, 2: 0, 3: 0}, 2, 1), "b may hold 2 ids, got 3"),
        (lambda: check.biases("b", {1: 2}, 2, 1), r"b\[1\] must be a number from -1 to 1, got 2"),
        (lambda: check.biases("b", {-1: 0}, 2, 1), "b: an id must be a whole number"),
        (lambda: check.biases("b", [(1, 0), (1, 0)], 2, 1), "b names an id twice"),
        (lambda: check.texts("s", [""], 4), "s must hold texts of 1 to 4 characters, got one of 0"),
        (lambda: check.texts("s", [5], 4), "got 5"),
        (lambda: check.texts("s", ["x" * 9], 4), "got one of 9"),
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_large_value_is_not_printed_whole() -> None:
    with pytest.raises(InputError) as error:
        check.tuple_of("t", "x" * 10**6)
    assert len(str(error.value)) < 200


def test_lists_and_single_values_become_tuples() -> None:
    assert check.tuple_of("t", [1, 2]) == check.tuple_of("t", (1, 2)) == (1, 2)
    assert check.tuple_of("t", "ab", str) == ("ab",)
    assert check.tuple_of("t", 3, int) == (3,)
