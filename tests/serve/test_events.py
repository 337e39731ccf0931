"""What an engine tells is plain data."""

import dataclasses
import subprocess
import sys

import pytest

from qkv.serve.events import Ended, Event, Piece, Scored, Times, Usage


def test_events_can_not_be_changed() -> None:
    for kind in (*Event.__args__, Scored, Usage, Times):  # type: ignore[attr-defined]
        assert dataclasses.fields(kind)
        assert kind.__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        Piece(0, "", ()).text = "x"  # type: ignore[misc]


def test_equal_events_are_equal() -> None:
    one = Ended(0, "stop", Usage(1, 0, 2), Times(0, 0, None, 1), None)
    assert one == dataclasses.replace(one)
    assert Scored(5) == Scored(5, None, {})


def test_policy_needs_no_torch() -> None:
    names = ["ask", "events", "state", "pages", "prefix", "sequence", "table", "fair_queue", "plan", "scheduler"]
    code = f"import sys, {', '.join(f'qkv.serve.{name}' for name in names)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
