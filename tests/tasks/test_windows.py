"""Windows lose no token, fit, and overlap as asked; what can't be is named."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Frame, Pieces, Slot
from qkv.tasks.windows import Limit, cut, limit, trim, truncate, windows
from tests.tasks.fakes import bert

ONE = Frame((Slot(None, 1, 0), Slot(0, 0, 0), Slot(None, 2, 0)))
TWO = Frame((*ONE.slots, Slot(1, 0, 1), Slot(None, 2, 1)))


def tokens(n: int, first: int = 10) -> Pieces:
    return Pieces([*range(first, first + n)], [(i, i + 1) for i in range(n)], [*range(n)])


@given(length=st.integers(0, 60), room=st.integers(1, 20), stride=st.integers(0, 19))
def test_every_token_is_in_a_window(length: int, room: int, stride: int) -> None:
    stride = min(stride, room - 1)
    parts = cut(length, room, stride)
    assert {i for part in parts for i in part} == {*range(length)}
    assert all(len(part) <= room for part in parts)
    assert all(len(part) == room for part in parts[:-1])
    for before, after in pairwise(parts):
        assert len({*before} & {*after}) == stride
        assert {*after} - {*before}
    if length <= room:
        assert parts == [range(length)]


@given(
    question=st.integers(1, 8),
    length=st.integers(1, 50),
    size=st.integers(13, 30),
    stride=st.one_of(st.none(), st.integers(0, 12)),
)
def test_framed_windows_hold_all_of_both_texts(question: int, length: int, size: int, stride: int | None) -> None:
    stride = None if stride is None else min(stride, size - question - 3 - 1)
    texts = (tokens(question), tokens(length, 1000))
    found = windows(TWO, texts, 1, Limit(size, "it says so", stride), "the text")
    seen = set()
    for window in found:
        encoded = window.encoded
        assert len(encoded) <= size
        assert [encoded.ids[i] for i in encoded.places(0)] == texts[0].ids
        held = [encoded.ids[i] for i in encoded.places(1)]
        assert held == texts[1].ids[window.tokens.start : window.tokens.stop]
        assert (encoded.ids[0], encoded.ids[-1], len(encoded)) == (1, 2, question + len(held) + 3)
        seen |= {*window.tokens}
    assert seen == {*range(length)}
    if question + length + 3 <= size:
        assert len(found) == 1
    assert windows(TWO, texts, 1, Limit(None, "no limit"), "the text")[0].encoded == TWO.join(*texts)


@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=2), size=st.integers(5, 40))
def test_truncating_is_longest_first(lengths: list[int], size: int) -> None:
    """The library's own rule, on the same lengths."""
    import tokenizers as library
    from tokenizers import models, pre_tokenizers, processors

    raw = library.Tokenizer(models.WordLevel({"a": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    raw.enable_truncation(size)
    want = raw.encode(*("a " * n for n in lengths))
    got = truncate(TWO, [tokens(n) for n in lengths], Limit(size, "it says so"))
    assert [len(got.places(0)), len(got.places(1))] == [want.sequence_ids.count(0), want.sequence_ids.count(1)]
    assert truncate(ONE, [tokens(lengths[0])], Limit(size, "")).ids[1:-1] == tokens(lengths[0]).ids[: size - 2]
    assert truncate(TWO, [tokens(n) for n in lengths], Limit(None, "")) == TWO.join(*map(tokens, lengths))


def test_the_limit_is_the_least_of_positions_context_and_window() -> None:
    model = bert(spec.Span(), 99, length=64)
    assert limit(model) == Limit(64, "this model's learned positions")
    block = model.encoder.blocks[0]  # type: ignore[union-attr]
    free = spec.Model(99, 16, encoder=spec.Stack((block,), 1), head=spec.Span())
    assert limit(free).size is None
    trained = spec.Model(99, 16, encoder=spec.Stack((block,), 1), head=spec.Span(), context=32)
    assert limit(trained, stride=5) == Limit(32, "the context that this model was trained on", 5)
    assert limit(model, window=20).size == 20
    assert limit(free, window=20, stride=3) == Limit(20, "the window asked for", 3)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"window": 65}, "window is 65 tokens; the most is 64: this model's learned positions"),
    ({"window": 0}, "window must be a whole number of tokens from 1, got 0"),
    ({"window": 2.5}, "window must be a whole number of tokens from 1, got 2.5"),
    ({"stride": True}, "stride must be a whole number of tokens from 0, got True"),
    ({"stride": -1}, "stride must be a whole number of tokens from 0, got -1"),
    ({"stride": 64}, "stride is 64, and a window 64 tokens .* must be less"),
    ({"stride": 20, "window": 20}, "stride is 20, and a window 20 tokens"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_windows_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        limit(bert(spec.Span(), 99, length=64), **options)


def test_a_text_that_leaves_no_room_is_named() -> None:
    with pytest.raises(InputError, match=r"text 3: 9 tokens and 3 special ones leave no room for the rest in 12 \(why"):
        windows(TWO, (tokens(9), tokens(5)), 1, Limit(12, "why"), "text 3")
    assert len(windows(TWO, (tokens(8), tokens(5)), 1, Limit(12, "why"), "it")) == 5
    with pytest.raises(InputError, match="the text: a stride of 4 needs windows of more than that, and here 4 tokens"):
        windows(TWO, (tokens(5), tokens(5)), 1, Limit(12, "why", 4), "the text")
    with pytest.raises(InputError, match=r"a window of 2 .* no room for text beside 2 special tokens"):
        truncate(ONE, [tokens(3)], Limit(2, "why"))


def test_trim() -> None:
    text = " a b\u3000\n"
    assert [trim(text, *at) for at in ((0, 6), (1, 2), (0, 1), (4, 6))] == [(1, 4), (1, 2), (1, 1), (6, 6)]
