"""SQuAD's measures, worked out by hand from the rules of evaluate-v2.0.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.train import squad


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The  Cat, a dog\nand AN owl!", "cat dog and owl"),
        ("A.B.", "ab"),
        ("a", ""),
        ("theory of an anthem", "theory of anthem"),
        ("the-end", "theend"),  # punctuation goes first, so this is no article any more
        ("l’été – «x»", "l’été – «x»"),  # only ASCII's
        ("$1,000.50", "100050"),
    ],
)
def test_what_is_compared(text: str, left: str) -> None:
    assert squad.normalize(text) == left


@pytest.mark.parametrize(
    ("truth", "found", "em", "f1"),
    [
        ("the Eiffel Tower", "Eiffel tower.", 1, 1),
        ("Denver Broncos", "The Denver Broncos team", 0, 0.8),  # 2 of 3 said, 2 of 2 there
        ("to to be", "to be be", 0, 2 / 3),  # each word as often as both have it
        ("", "", 1, 1),
        ("", "something", 0, 0),
        ("something", "", 0, 0),
        ("1976", "1977", 0, 0),
    ],
)
def test_one_answer(truth: str, found: str, em: float, f1: float) -> None:
    assert squad.exact(truth, found) == em
    assert squad.overlap(truth, found) == pytest.approx(f1)


def test_a_set_with_questions_that_have_no_answer() -> None:
    truths = [["Paris", "the city of Paris"], ["42"], [], []]
    found = ["City of Paris", "forty two", "", "London"]
    assert squad.score(truths, found) == {
        "exact": 50.0,
        "f1": 50.0,
        "HasAns_exact": 50.0,
        "HasAns_f1": 50.0,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
    }


def test_the_best_of_several_answers_counts() -> None:
    assert squad.score([["in the year 1990", "1990"]], ["year 1990"])["f1"] == pytest.approx(80.0)
    assert "NoAns_f1" not in squad.score([["1990"]], ["1990"])
    assert "HasAns_f1" not in squad.score([[]], [""])


def test_an_answer_of_which_nothing_is_left() -> None:
    """The script takes "the" out of the answers, and the question still for one that has an answer."""
    assert squad.score([["the"]], [""]) == {"exact": 100.0, "f1": 100.0, "HasAns_exact": 100.0, "HasAns_f1": 100.0}
    assert squad.score([["the", "a dog"]], ["the"])["exact"] == 0.0


@given(st.text(), st.text())
def test_the_measures_are_shares(a: str, b: str) -> None:
    em, f1 = squad.exact(a, b), squad.overlap(a, b)
    assert 0 <= em <= f1 <= 1
    assert f1 == pytest.approx(squad.overlap(b, a))
    assert squad.exact(a, a) == 1


def test_as_many_answers_as_questions() -> None:
    for truths, found in (([], []), ([["a"]], [])):
        with pytest.raises(InputError, match="there must be as many"):
            squad.score(truths, found)
