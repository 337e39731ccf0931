"""Grouping by length, on any lengths."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qkv.tasks.batches import by_length

lengths = st.lists(st.integers(1, 600), max_size=80)


@given(lengths, st.integers(1, 2000))
def test_each_index_once_in_order_of_length_and_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = by_length(lengths, budget)
    flat = [i for group in groups for i in group]
    assert flat == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for group in groups:
        assert group
        assert sum(lengths[i] for i in group) <= budget or len(group) == 1


@given(lengths, st.integers(1, 2000))
def test_no_group_has_room_for_the_next_ones_first(lengths: list[int], budget: int) -> None:
    groups = by_length(lengths, budget)
    for group, after in pairwise(groups):
        assert sum(lengths[i] for i in group) + lengths[after[0]] > budget


def test_examples() -> None:
    assert by_length([], 10) == []
    assert by_length([5, 1, 5, 30, 2], 10) == [[1, 4, 0], [2], [3]]
