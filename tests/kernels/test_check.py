"""The self test passes with the library, and not with one that is a little wrong."""

import pytest
import torch

from qkv.kernels.check import TOLERANCE, errors
from qkv.kernels.native import LEVELS, TYPES, Native, native, reason


def library() -> Native:
    found = native()
    assert found is not None, reason()
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_the_library_is_right(level: str) -> None:
    library().use(level)
    try:
        found = errors(library())
    finally:
        library().use(None)
    assert list(found) == list(TYPES)
    assert max(found.values()) < TOLERANCE / 10


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    right = Native.linear

    def linear(self: Native, *args: object) -> torch.Tensor:
        return right(self, *args) * wrong  # type: ignore[arg-type]

    monkeypatch.setattr(Native, "linear", linear)
    assert not any(error <= TOLERANCE for error in errors(library()).values())
