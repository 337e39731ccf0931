"""What a recipe's objective may be."""

import pytest
from pydantic import TypeAdapter, ValidationError

from qkv.train.goals import AnyObjective, Causal, Masked

ADAPTER = TypeAdapter(AnyObjective)


def test_the_kind_says_which():
    assert ADAPTER.validate_python({"kind": "causal"}) == Causal(kind="causal")
    masked = ADAPTER.validate_python({"kind": "masked", "rate": 0.3, "smoothing": 0.1})
    assert isinstance(masked, Masked)
    assert (masked.rate, masked.smoothing, masked.dynamic) == (0.3, 0.1, True)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({}, "kind"),
        ({"kind": "unknown"}, "kind"),
        ({"kind": "causal", "rate": 0.1}, "rate"),
        ({"kind": "causal", "smoothing": 1.0}, "less than 1"),
        ({"kind": "causal", "on_long": "cut"}, "on_long"),
        ({"kind": "masked", "rate": 0.0}, "greater than 0"),
        ({"kind": "masked", "mask": 0.9, "random": 0.2}, "at most 1"),
        ({"kind": "spans", "mean": 0.5}, "greater than or equal to 1"),
        ({"kind": "contrast", "scale": 0}, "greater than 0"),
    ],
)
def test_what_is_wrong(said, says):
    with pytest.raises(ValidationError, match=says):
        ADAPTER.validate_python(said)
