"""Drawing records and measuring some of them."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.train.survey import Drawn, draw, survey


@given(st.integers(0, 60), st.integers(1, 40))
def test_all_are_counted_and_some_kept(count: int, most: int) -> None:
    drawn = draw(range(count), most)
    assert (drawn.counted, drawn.whole, len(drawn.records)) == (count, True, min(count, most))
    assert set(drawn.records) <= set(range(count))
    assert len(set(drawn.records)) == len(drawn.records)


def test_each_has_the_same_chance() -> None:
    kept = Counter(one * 10 // 20_000 for one in draw(range(20_000), 2_000).records)
    assert all(150 < kept[tenth] < 250 for tenth in range(10))


def test_reading_ends_in_time() -> None:
    drawn = draw(itertools.count(), 10, seconds=0.02)
    assert not drawn.whole
    assert drawn.counted > 10


def test_means() -> None:
    def encode(record: int) -> list[list[int]]:
        if record == 3:
            raise InputError("three is bad")
        return [[0] * record] * 2

    found = survey(Drawn([1, 2, 3], 300, True), encode, len)
    assert (found.records, found.encoded, found.bad, found.why) == (300, 3, 1, "three is bad")
    assert found.samples == pytest.approx(4 / 3), "a bad record gives none"
    assert found.tokens == 1.5


def test_nothing_to_train_on() -> None:
    def encode(record: int) -> list[list[int]]:
        raise InputError("a.txt:1 is bad")

    with pytest.raises(InputError, match=r"none of 2 training records gives anything to train on: a.txt:1 is bad"):
        survey(Drawn([1, 2], 2, True), encode, len)
    with pytest.raises(InputError, match=r"none of 1 training records gives anything to train on$"):
        survey(Drawn([1], 1, True), lambda record: [], len)
