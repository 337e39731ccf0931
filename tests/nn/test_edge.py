"""Ids as callers have them, as the stream of the model. (What is refused: test_stack.py.)"""

import pytest
import torch

from qkv.errors import InputError
from qkv.nn.edge import as_stream, segments_of

CPU = torch.device("cpu")


def test_one_row_after_another() -> None:
    stream, lengths = as_stream([[1, 2], torch.tensor([3]), (4, 5, 6)], 7, CPU)
    assert stream.tolist() == [1, 2, 3, 4, 5, 6]
    assert stream.dtype == torch.long
    assert lengths == [2, 1, 3]


def test_ids_are_of_the_vocabulary() -> None:
    with pytest.raises(InputError, match="token id 7 is outside the vocabulary of 7"):
        as_stream([[1, 7]], 7, CPU)


def test_segments_have_the_form_of_the_ids() -> None:
    assert segments_of([[0, 1], [1]], [2, 1], 2, CPU).tolist() == [0, 1, 1]
    for segments, kinds, said in (
        ([[0, 1]], 2, r"must have the lengths of the ids, \[2, 1\], got \[2\]"),
        ([[0], [1, 1]], 2, r"got \[1, 2\]"),
        ([[0, 1], [1]], 0, "has no segments"),
        (torch.zeros(3), 2, r"segments must be \[batch, length\]"),
    ):
        with pytest.raises(InputError, match=said):
            segments_of(segments, [2, 1], kinds, CPU)
