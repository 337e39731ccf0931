"""A stream and where its tokens belong."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.nn.batch import Batch


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    if draw(st.booleans()):
        lengths = [lengths[0]] * len(lengths)
    starts = [draw(st.integers(0, 9)) for _ in lengths]
    if draw(st.booleans()):
        starts = [starts[0]] * len(lengths)
    return Batch(lengths, starts, torch.device("cpu"))


@given(batches())
def test_every_token_knows_its_place(batch: Batch) -> None:
    places = [
        (row, column, start + column)
        for row, (length, start) in enumerate(zip(batch.lengths, batch.starts, strict=True))
        for column in range(length)
    ]
    rows, columns, positions = (list(x) for x in zip(*places, strict=True))
    assert batch.rows.tolist() == rows
    assert batch.columns.tolist() == columns
    assert batch.positions.tolist() == positions
    assert [positions[i] + 1 for i in batch.last()] == batch.ends
    assert batch.equal == (len(set(batch.lengths)) == 1)
    assert batch.aligned == (batch.equal and len(set(batch.starts)) == 1)


@given(batches())
def test_a_grid_is_the_stream_with_room_in_between(batch: Batch) -> None:
    x = torch.randn(sum(batch.lengths), 2, 3)
    grid = batch.grid(x)
    assert grid.shape == (len(batch.lengths), max(batch.lengths), 2, 3)
    assert torch.equal(batch.stream(grid), x)
    for row, part in enumerate(batch.split(x)):
        assert torch.equal(grid[row, : len(part)], part)
        assert not grid[row, len(part) :].any()
    assert (grid.data_ptr() == x.data_ptr()) == batch.equal, "a view where it can be one"


@given(batches())
def test_positions_of_the_grid(batch: Batch) -> None:
    """A cell without a token says its sequence's first position."""
    shown = batch.grid_positions.expand(len(batch.lengths), -1).tolist()
    for line, length, start in zip(shown, batch.lengths, batch.starts, strict=True):
        assert line[:length] == list(range(start, start + length))
        assert set(line[length:]) <= {start}
    assert len(batch.grid_positions) == (1 if batch.aligned else len(batch.lengths))


def test_once_is_made_once_a_step() -> None:
    made = []
    batch, other = (Batch([1], [0], torch.device("cpu")) for _ in range(2))
    for b in (batch, batch, other):
        b.once("key", lambda: made.append(1))
    assert len(made) == 2


def test_runs_are_neighbours_of_one_length_and_start() -> None:
    batch = Batch([2, 2, 3, 2, 2], [0, 0, 0, 0, 4], torch.device("cpu"))
    found = [(at.start, at.stop, part.lengths, part.starts) for at, part in batch.runs]
    assert found == [(0, 4, [2, 2], [0, 0]), (4, 7, [3], [0]), (7, 9, [2], [0]), (9, 11, [2], [4])]
    assert all(part.aligned for _, part in batch.runs)
