"""Counters and records."""

import dataclasses

import pytest

from qkv.serve import state
from qkv.serve.state import Counts, State, View


def test_a_rate_looks_back_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(state, "perf_counter", lambda: now[0])
    counts = Counts()
    assert counts.rate() == 0
    for _ in range(20):
        now[0] += 0.5
        counts.step(4)
    assert counts.rate() == pytest.approx(8, rel=0.15)
    now[0] += 10
    assert counts.rate() == 0


def test_a_state_says_what_a_view_says_and_more() -> None:
    names = [{field.name for field in dataclasses.fields(kind)} for kind in (View, State)]
    assert names[0] < names[1]
