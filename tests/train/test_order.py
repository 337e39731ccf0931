"""Every sample once an epoch, within the budget, alike for all ranks; and nothing but sizes, seed and epoch decides."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import ConfigError, InputError
from qkv.train.order import Order
from qkv.train.recipe import BatchOf

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=80).filter(any)
SEED = st.integers(-5, 2**70)
EPOCH = st.integers(0, 1000)
WORLD = st.integers(1, 5)


def ranks(sizes, batch, seed, world, epoch=0, **more):
    return [Order(np.array(sizes), batch, seed, rank=r, world=world, **more).epoch(epoch) for r in range(world)]


def fair(drawn):
    """All ranks have as many batches; how often each sample is in one."""
    assert len({len(batches) for batches in drawn}) == 1
    return Counter(i for batches in drawn for batch in batches for i in batch)


def streams(sizes, blocks):
    """The tokens of blocks as (sample, place)."""
    return [(piece.sample, at) for block in blocks for piece in block for at in range(piece.start, piece.stop)]


@given(SIZES, SEED, EPOCH, WORLD, st.integers(1, 7), st.booleans())
def test_by_sequences(sizes, seed, epoch, world, each, shuffle) -> None:
    if len(sizes) < world:
        return
    drawn = ranks(sizes, BatchOf(sequences=each), seed, world, epoch, shuffle=shuffle)
    seen = fair(drawn)
    assert all(1 <= len(batch) <= each for batches in drawn for batch in batches)
    left = len(sizes) % world if each == 1 else 0
    assert set(seen.values()) == {1}
    assert len(sizes) - len(seen) == left or each > 1


@given(SIZES, SEED, EPOCH, WORLD, st.integers(30, 200), st.booleans())
def test_by_tokens(sizes, seed, epoch, world, tokens, shuffle) -> None:
    if len(sizes) < world:
        return
    drawn = ranks(sizes, BatchOf(tokens=tokens), seed, world, epoch, shuffle=shuffle)
    seen = fair(drawn)
    assert all(batch and sum(sizes[i] for i in batch) <= tokens for batches in drawn for batch in batches)
    assert set(seen.values()) == {1}
    if world == 1:
        assert len(seen) == len(sizes)
    if len(seen) < len(sizes):  # only where each batch is one sequence
        assert all(len(batch) == 1 for batches in drawn for batch in batches)
        note = Order(np.array(sizes), BatchOf(tokens=tokens), seed, world=world, shuffle=shuffle)
        assert len(sizes) - len(seen) < world
        assert epoch or "leaves out" in note.notes[0]


@given(SIZES, SEED, EPOCH, WORLD, st.integers(2, 40), st.integers(1, 4), st.sampled_from(["blocks", "documents"]))
def test_blocks_cover_the_stream(sizes, seed, epoch, world, length, each, packing) -> None:
    batch = BatchOf(sequences=each, length=length, packing=packing)
    apart = packing == "documents"
    read = sum(max(size - 1, 0) for size in sizes) if apart else sum(sizes) - 1
    if not read:
        with pytest.raises(InputError, match="nothing to predict"):
            ranks(sizes, batch, seed, 1)
        return
    if read < world * length:  # there may be too few blocks
        world = 1
    drawn = ranks(sizes, batch, seed, world, epoch)
    assert len({len(batches) for batches in drawn}) == 1
    blocks = [block for batches in drawn for one in batches for block in one]
    for block in blocks:
        assert all(0 <= piece.start < piece.stop <= sizes[piece.sample] for piece in block)
        assert not apart or all(piece.stop - piece.start > 1 for piece in block)
    lengths = [sum(piece.stop - piece.start for piece in block) - (len(block) if apart else 1) for block in blocks]
    assert min(lengths) >= 1
    assert max(lengths) <= length
    assert sum(n < length for n in lengths) <= 2  # the first and the last
    seen = Counter(target for block in blocks for target in predicted(sizes, block, apart))
    assert set(seen.values()) <= {1}
    if world == 1 or (each > 1 and len(blocks) >= world * 2):
        assert read - len(seen) <= (world - 1) * length
        assert world > 1 or len(seen) == read


def predicted(sizes, block, apart):
    """The tokens of a block but the first one; of texts that are apart, but the first of each piece."""
    if apart:
        return [token for piece in block for token in streams(sizes, [[piece]])[1:]]
    return streams(sizes, [block])[1:]


def test_blocks_stand_in_the_stream_as_texts_do() -> None:
    sizes = [7, 3, 12, 1]
    (batches,) = ranks(sizes, BatchOf(sequences=1, length=5, packing="blocks"), 0, 1, shuffle=False)
    everything = [(i, at) for i, size in enumerate(sizes) for at in range(size)]
    blocks = [block for batch in batches for block in batch]
    assert [token for block in blocks for token in predicted(sizes, block, False)] == everything[1:]
    assert [tuple(piece) for piece in batches[1][0]] == [(0, 5, 7), (1, 0, 3), (2, 0, 1)]
    (batches,) = ranks(sizes, BatchOf(sequences=1, length=5, packing="documents"), 0, 1, shuffle=False)
    blocks = [[tuple(piece) for piece in block] for batch in batches for block in batch]
    assert blocks == [[(0, 0, 6)], [(0, 5, 7), (1, 0, 3), (2, 0, 3)], [(2, 2, 8)], [(2, 7, 12)]]


def test_blocks_are_cut_elsewhere_in_each_epoch() -> None:
    order = Order(np.array([1000]), BatchOf(sequences=4, length=64, packing="blocks"), 1)
    starts = [{piece.start for batch in order.epoch(e) for block in batch for piece in block} for e in range(3)]
    assert not starts[0] & starts[1] - {0}
    assert starts[1] != starts[2]


def test_a_block_a_batch_for_ranks_that_do_not_divide_says_what_is_left() -> None:
    batch = BatchOf(sequences=1, length=10, packing="blocks")
    drawn = ranks([101], batch, 3, 4)
    assert [len(batches) for batches in drawn] == [2, 2, 2, 2]
    assert "leaves out" in Order(np.array([101]), batch, 3, world=4).notes[0]
    assert Order(np.array([101]), batch, 3, world=1).notes == []


def test_ranks_get_batches_of_like_lengths() -> None:
    sizes = np.random.default_rng(0).integers(5, 100, 5000)
    one, two = ranks(sizes, BatchOf(tokens=1000), 0, 2)
    apart = [abs(sizes[a].mean() - sizes[b].mean()) for a, b in zip(one, two, strict=True)]
    assert np.mean(apart) < 2


def test_buckets_hold_texts_of_like_lengths_and_fill_the_budget() -> None:
    sizes = np.random.default_rng(0).integers(5, 100, 20_000)
    order = Order(sizes, BatchOf(tokens=2000), 0)
    batches = order.epoch(0)
    padded = sum(sizes[b].max() * len(b) for b in batches)
    assert sizes.sum() / padded > 0.97
    assert order.per_epoch < 1.06 * sizes.sum() / 2000
    means = np.array([sizes[b].mean() for b in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.1  # and short ones don't come first


def test_pure() -> None:
    sizes = np.random.default_rng(0).integers(1, 50, 300)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    order = Order(sizes, BatchOf(tokens=200), 7)
    later = [list(order.epoch(e)) for e in (3, 0, 1)]
    fresh = Order(sizes, BatchOf(tokens=200), 7)
    assert later == [list(fresh.epoch(3)), list(fresh.epoch(0)), list(fresh.epoch(1))]
    assert later[0] != later[1] != later[2]
    assert list(Order(sizes, BatchOf(tokens=200), 8).epoch(0)) != later[1]
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_the_order_of_a_seed_stays_what_it_is() -> None:
    """A run of an older qkv goes on with the same data."""
    assert list(Order(np.arange(1, 8), BatchOf(sequences=3), 1).epoch(2)) == [[1, 4, 3], [0, 6, 5], [2]]
    assert list(Order(np.arange(1, 8), BatchOf(tokens=9), 1).epoch(2)) == [[3, 4], [0, 1, 2], [5], [6]]


def test_epochs_are_sequences() -> None:
    batches = Order(np.arange(1, 10), BatchOf(sequences=2), 0).epoch(0)
    assert batches[-1] == list(batches)[4]
    assert batches[1:3] == [batches[1], batches[2]]
    with pytest.raises(IndexError):
        batches[5]


def test_errors() -> None:
    with pytest.raises(InputError, match="no sample"):
        Order(np.array([], np.int32), BatchOf(sequences=1), 0)
    with pytest.raises(InputError, match="all of 3 samples are empty"):
        Order(np.zeros(3, np.int32), BatchOf(sequences=1), 0)
    with pytest.raises(InputError, match=r"sample 1 has 40 tokens and batch.tokens is 30"):
        Order(np.array([3, 40]), BatchOf(tokens=30), 0)
    with pytest.raises(ConfigError, match="less than one block"):
        Order(np.array([3, 40]), BatchOf(tokens=30, length=40, packing="blocks"), 0)
    with pytest.raises(InputError, match="3 ranks can't share 2"):
        Order(np.array([3, 40]), BatchOf(sequences=2), 0, world=3).epoch(0)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Order(np.array([3, 40]), BatchOf(sequences=2), 0, rank=2, world=2)
