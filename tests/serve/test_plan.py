"""How a step's tokens are shared out."""

from hypothesis import given
from hypothesis import strategies as st

from qkv.serve.plan import Plan, Row, quarter, share_out
from qkv.serve.sequence import Sequence

RESTS = st.lists(st.integers(1, 2000), max_size=20)


def test_a_row_knows_its_tokens() -> None:
    sequence = Sequence(1, [5, 6, 7, 8], limit=1)
    row = Row(sequence, 2, 1, False)
    assert row.tokens == [6, 7]
    assert row.of_prompt == 2
    assert Plan([row, Row(sequence, 3, 0, False)], [], []).tokens == 5


def test_which_of_a_rows_tokens_are_of_its_prompt() -> None:
    sequence = Sequence(1, [5, 6, 7, 8], limit=3)
    sequence.append(9)
    sequence.append(10)
    rows = [Row(sequence, count, start, True) for count, start in ((4, 0), (6, 0), (2, 3), (1, 4), (1, 5))]
    assert [row.of_prompt for row in rows] == [4, 4, 1, 0, 0]


@given(RESTS, st.integers(0, 600), st.booleans())
def test_never_more_than_there_is(rests: list[int], budget: int, kept: bool) -> None:
    reserve = quarter(budget) if kept else 0
    counts = share_out(rests, budget, reserve)
    assert all(0 <= count <= rest for count, rest in zip(counts, rests, strict=True))
    assert sum(counts) <= max(budget - reserve, quarter(budget))
    assert not rests or not budget or counts[0] >= min(rests[0], quarter(budget))


@given(RESTS, st.integers(1, 600))
def test_nothing_is_left_unused(rests: list[int], budget: int) -> None:
    assert sum(share_out(rests, budget)) == min(budget, sum(rests))


def test_the_shortest_first_and_the_oldest_always() -> None:
    assert share_out([1000, 30, 20, 500], 100) == [25, 30, 20, 25]
    assert share_out([1000, 30, 20, 500], 100, 25) == [25, 30, 20, 0]
    assert share_out([10, 5], 100) == [10, 5]
    assert share_out([], 100) == []
    assert share_out([7], 1, 1) == [1]
