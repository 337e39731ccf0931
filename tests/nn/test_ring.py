"""A ring keeps what a window sees, and as much more as it was asked to. (Its answers: test_cache.py.)"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.nn.batch import Batch
from qkv.nn.ring import Ring


def put(ring: Ring, start: int, count: int) -> list[int]:
    """Read `count` tokens whose key is their position: the positions that the ring then says there are."""
    k = torch.arange(start, start + count).float().view(count, 1, 1)
    return ring.extend(k, k, Batch([count], [start], torch.device("cpu"))).positions()[0].tolist()


def test_a_ring_shows_the_last_positions_only() -> None:
    ring, seen = Ring(3), []
    for t in range(5):
        k = torch.full((1, 1, 2), float(t))
        keys = ring.extend(k, k, Batch([1], [t], torch.device("cpu")))
        assert keys.k[0, 0, :, 0].tolist() == keys.v[0, 0, :, 1].tolist() == keys.positions()[0].tolist()
        seen.append((keys.positions()[0].tolist(), keys.in_order))
    assert seen == [([0], True), ([0, 1], True), ([0, 1, 2], True), ([3, 1, 2], False), ([3, 4, 2], False)]


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 20), st.integers(1, 12))
def test_what_is_undoable_and_no_more_can_be_taken_back(size: int, spare: int, length: int, more: int) -> None:
    ring = Ring(size)
    ring.reserve(spare)
    assert ring.slots == size + max(spare - 1, 0)
    for t in range(length):
        put(ring, t, 1)
    allowed = ring.undoable(length)
    assert allowed >= max(spare, 1)
    put(ring, length, more)
    if more <= allowed or length == 0:
        ring.truncate([length])
        put(ring, length, 1)
    else:
        with pytest.raises(InputError, match=f"a window of {size} can't go back from .* to .*older keys are gone"):
            ring.truncate([length])


def test_what_is_there_is_not_reserved_anew() -> None:
    ring = Ring(3, at_once=True)
    put(ring, 0, 2)
    ring.reserve(9)
    assert ring.slots == 3
    assert ring.nbytes == 2 * 3 * 4
    large = Ring(3, at_once=True)
    large.reserve(9)
    put(large, 0, 2)
    assert large.nbytes == 2 * 11 * 4
