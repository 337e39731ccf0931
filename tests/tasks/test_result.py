"""Results are values: as JSON and as a person reads them."""

import json
from dataclasses import FrozenInstanceError

import pytest

from qkv.tasks.result import Answer, Answered, Classification, Filled, Filling, Span, Tagged

TAGGED = Tagged("Anna is in Rome.", (Span("PER", 0, 4, "Anna", 0.9), Span("LOC", 11, 15, "Rome", 0.5)))
ANSWERED = Answered("Who?", (Answer("Anna", 0, 4, 0.75), Answer("", 0, 0, 0.25)), 2)
FILLED = Filled("a [MASK]", ((Filling("b", 3, 0.5, "a b"), Filling("c", 4, 0.25, "a c")),))
MULTI = Classification("x", 0.9, {"x": 0.9, "y": 0.6, "z": 0.1}, "multi")
READ = [
    (Classification("good", 0.875, {"good": 0.875, "bad": 0.125}), "good (0.875)"),
    (MULTI, "x (0.900), y (0.600)"),
    (Classification("x", 0.3, {"x": 0.3}, "multi"), "no label (the likeliest is x, 0.300)"),
    (Classification("stars", -2.5, {"stars": -2.5}, "regression"), "stars (-2.500)"),
    (TAGGED, "[Anna: PER] is in [Rome: LOC]."),
    (TAGGED.spans[0], "Anna (PER, 0.900)"),
    (ANSWERED, "Anna (0.750)"),
    (ANSWERED.answers[1], "no answer (0.250)"),
    (FILLED, "a b"),
    (Filled("", FILLED.masks * 2), "1: b; 2: b"),
]


@pytest.mark.parametrize(("result", "text"), READ, ids=[text for _, text in READ])
def test_results_read_well_and_are_json(result: object, text: str) -> None:
    assert str(result) == text
    found = result.to_dict()  # type: ignore[attr-defined]
    assert json.loads(json.dumps(found, allow_nan=False)).keys() == found.keys()
    assert set(found) == set(vars(result))
    with pytest.raises(FrozenInstanceError):
        result.score = 1  # type: ignore[attr-defined]


def test_shortcuts() -> None:
    assert ANSWERED.best.text == "Anna"
    assert MULTI.labels == ("x", "y")
    assert TAGGED.to_dict()["spans"][1] == {"label": "LOC", "start": 11, "end": 15, "text": "Rome", "score": 0.5}
    assert [span["text"] for span in TAGGED.to_dict()["spans"]] == [span.text for span in TAGGED.spans]
