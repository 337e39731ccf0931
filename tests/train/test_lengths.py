"""Texts that are too long: each way of dealing with them, its counts and its words."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.families.bert import FAMILY as BERT
from qkv.tasks.windows import Limit
from qkv.train.lengths import Lengths, most
from tests.tiny import tiny_spec
from tests.train import small

MOST = Limit(8, "batch.length")


@dataclass
class Counted:
    cut: int = 0
    dropped: int = 0


def test_the_most_is_the_least_of_what_is_said() -> None:
    model = BERT.spec(BERT.tiny)  # 64 learned positions
    assert most(model, 10) == Limit(10, "batch.length")
    assert most(model, 64).why == "the context that this model was trained on"
    assert most(model, None).size == most(model, 1000).size == 64
    assert most(tiny_spec(), None).size is None
    assert most(replace(tiny_spec(), context=30), 40) == Limit(30, "the context that this model was trained on")


@pytest.mark.parametrize("how", ["error", "truncate", "drop", "window"])
def test_what_fits_is_left_alone(how: str) -> None:
    counted = Counted()
    assert Lengths(counted, how, MOST).ranges(6, 2) == [range(6)]  # type: ignore[arg-type]
    assert counted == Counted()


def test_each_way() -> None:
    counted = Counted()
    assert Lengths(counted, "truncate", MOST).ranges(20, 2) == [range(6)]
    assert counted == Counted(cut=1)
    assert Lengths(counted, "drop", MOST).ranges(20, 2) == []
    assert counted == Counted(cut=1, dropped=1)
    assert Lengths(counted, "window", MOST).ranges(13, 2) == [range(6), range(6, 12), range(12, 13)]
    assert counted == Counted(cut=2, dropped=1)
    assert Lengths(counted, "window", MOST, least=2).ranges(13, 2)[-1] == range(11, 13)
    assert Lengths(counted, "window", MOST, stride=2).ranges(10, 2) == [range(6), range(4, 10)]


def test_no_limit() -> None:
    assert Lengths(Counted(), "error", None).ranges(10**6, 2) == [range(10**6)]
    assert Lengths(Counted(), "error", Limit(None, "no limit")).fits(10**6)


def test_the_error_says_how_long_and_the_way_out() -> None:
    with pytest.raises(
        InputError, match=r"the source has 22 tokens; the most is 8 \(batch.length\).*on_long.*drop"
    ) as e:
        Lengths(Counted(), "error", MOST).ranges(20, 2, "the source")
    assert "larger batch.length" in str(e.value)
    with pytest.raises(InputError, match="positions") as e:
        Lengths(Counted(), "error", Limit(8, "learned positions"), ways=("drop",)).ranges(20)
    assert "larger batch.length" not in str(e.value)
    assert "truncate" not in str(e.value)
    with pytest.raises(InputError, match="8 special tokens leave no room"):
        Lengths(Counted(), "truncate", MOST).ranges(20, 8)


def test_ways_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"on_long: 'window'.*error, truncate, drop"):
        Lengths(Counted(), "window", MOST, ways=("truncate", "drop"))


@given(st.integers(1, 60), st.integers(0, 4), st.integers(3, 20), st.integers(1, 2))
def test_windows_hold_each_token_once(tokens: int, added: int, room: int, least: int) -> None:
    parts = Lengths(Counted(), "window", Limit(room + added, "it"), least=least).ranges(tokens, added)
    assert {i for part in parts for i in part} == set(range(tokens))
    assert sum(map(len, parts)) - tokens <= least - 1
    assert all(min(least, tokens) <= len(part) <= room for part in parts)


def test_framed_texts() -> None:
    tokenizer, counted = small.bert(), Counted()
    one, two = tokenizer.pieces(small.texts(4, 9))
    frame = tokenizer.frame(2)
    whole = Lengths(counted, "error", Limit(16, "it")).framed(frame, [one, two])
    assert [(len(w.encoded), w.tokens) for w in whole] == [(16, range(9))]
    assert Lengths(counted, "drop", Limit(15, "it")).framed(frame, [one, two]) == []
    short = Lengths(counted, "truncate", Limit(11, "it")).framed(frame, [one, two])
    assert [(len(w.encoded), w.tokens) for w in short] == [(11, range(4))]
    parts = Lengths(counted, "window", Limit(11, "it")).framed(frame, [one, two])
    assert [w.tokens for w in parts] == [range(4), range(4, 8), range(8, 9)]
    assert all(w.encoded.ids[1:5] == one.ids for w in parts)
    over = Lengths(counted, "window", Limit(14, "it")).framed(frame, [two, one], over=0)
    assert over[0].tokens == range(7)
    assert counted == Counted(cut=3, dropped=1)
    with pytest.raises(InputError, match="the text has 16 tokens"):
        Lengths(counted, "error", Limit(15, "it")).framed(frame, [one, two])


def test_encoder_and_decoder_both_count() -> None:
    block = spec.Block(spec.Attention(2, 2, mask=spec.Full()), spec.Plain(8), spec.LayerNorm())
    cross = replace(block, mixer=spec.Attention(2, 2), cross=spec.Attention(2, 2, mask=spec.Full()))
    stacks = [spec.Stack((b,), 1, embed=spec.Embed(spec.Learned(n))) for b, n in ((block, 30), (cross, 20))]
    assert most(spec.Model(11, 8, stacks[1], stacks[0]), None).size == 20
