"""A sequence: its tokens and what it may become."""

import pytest

from qkv.errors import InputError
from qkv.serve.pages import Inconsistent
from qkv.serve.sequence import Sequence


def test_an_answer_grows_to_its_limit() -> None:
    sequence = Sequence(1, [5, 6, 7], limit=2)
    assert (sequence.waiting, sequence.made, sequence.longest, sequence.state) == (3, 0, 4, "waiting")
    sequence.append(8)
    sequence.append(9)
    assert (sequence.ids, sequence.prompt, sequence.made) == ([5, 6, 7, 8, 9], (5, 6, 7), 2)
    with pytest.raises(Inconsistent, match=r"Sequence\(1, waiting, 0 of 5 read\) takes no more"):
        sequence.append(1)


def test_a_prompt_that_is_only_read() -> None:
    sequence = Sequence(1, [5, 6], limit=0)
    assert sequence.longest == 2
    with pytest.raises(Inconsistent):
        sequence.append(1)


def test_nothing_is_added_to_what_is_finished() -> None:
    sequence = Sequence(1, [5], limit=3)
    sequence.state = "finished"
    with pytest.raises(Inconsistent):
        sequence.append(1)


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match="prompt of one token"):
        Sequence(1, [], limit=3)
    with pytest.raises(InputError, match="can't have -1 tokens"):
        Sequence(1, [1], limit=-1)


def test_what_depends_on_a_source_is_not_found_by_tokens() -> None:
    assert Sequence(1, [1], limit=1).reuse
    assert not Sequence(1, [1], limit=1, source=[3]).reuse
    assert not Sequence(1, [1], limit=1, reuse=False).reuse


def test_what_others_can_use_of_it() -> None:
    for apart, shared in ((False, 3), (True, 2)):
        sequence = Sequence(1, [5, 6], limit=3, apart=apart)
        sequence.append(7)
        assert sequence.shared == shared
