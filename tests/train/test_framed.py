"""Framed texts as samples, and back."""

import numpy as np
import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.train import framed
from tests.tasks.fakes import bert, wordpiece


def test_there_and_back() -> None:
    """Segments go along where the model has some, and only there."""
    texts = [("Paris is", "the capital"), ("Who lives", "in New York?")]
    encoded = [wordpiece().encode_with_offsets(*pair) for pair in texts]
    with_, without = (bert(spec.States(), 99, segments=kinds) for kinds in (2, 0))
    samples = [framed.sample_of(one, with_) for one in encoded]
    feed = framed.feed_of(samples, torch.tensor([1, 2]), 2)
    assert [row.tolist() for row in feed.ids] == [one.ids for one in encoded]
    assert feed.segments is not None
    assert [row.tolist() for row in feed.segments] == [one.segments for one in encoded]
    assert (feed.tokens, feed.targets, feed.target) == (sum(map(len, encoded)), 2, None)
    assert framed.sample_of(encoded[0], without).keys() == {"ids"}
    assert framed.feed_of([framed.sample_of(one, without) for one in encoded], torch.empty(0), 0).segments is None
    assert all(column.dtype == np.int32 for column in samples[0].values())


@pytest.mark.parametrize("value", [None, 3, "", " \n", ["a"]])
def test_a_text_is_a_text(value: object) -> None:
    with pytest.raises(InputError, match="first must be a text"):
        framed.text_of({"first": value}, "first")


def test_a_text_without_tokens() -> None:
    with pytest.raises(InputError, match="has no token"):
        framed.pieces_of(wordpiece(), ["a", "\u200b"])


def test_the_head_must_be_there() -> None:
    model = bert(spec.Span(), 99)
    framed.head_of(model, spec.Span, "span")
    with pytest.raises(
        ConfigError, match=r"'tag' trains a Tag head, and the model's is Span: .* model.new_head = 'tag'"
    ):
        framed.head_of(model, spec.Tag, "tag")
