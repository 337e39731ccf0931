"""What a person sees while a run runs."""

import io
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from qkv.train import screen
from qkv.train.screen import Screen, described, duration, told
from qkv.train.watch import Step


def step(number: int, share: float | None = None) -> Step:
    return Step(number, 2.5, 1.0, 1e-3, 1000, 0.5, 1e9, 0.1, share)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    return now  # type: ignore[return-value]


RATES = {"tokens_per_second": 12345.6, "mfu": 0.412}


def test_a_step_in_one_line() -> None:
    text = described(step(120), 1000, RATES, 1_200_000_000, 125.0)
    assert text == "step 120/1000  loss 2.5000  lr 1.00e-03  12,346 tok/s  MFU 41.2%  1.20 GB  2 min 5 s left"
    assert described(step(1), None, {}, 5_000_000, None) == "step 1  loss 2.5000  lr 1.00e-03  5.0 MB"


def test_plain_lines_now_and_then(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    one = Screen(100)
    for number in range(1, 51):
        one.moved(step(number), RATES)
        clock[0] += 1.0
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["1/100", "11/100", "21/100", "31/100", "41/100"]
    assert "59.0 s left" in said[-1]  # a step a second
    assert "left" not in said[0]
    one.moved(step(100), RATES)
    assert "100/100" in capsys.readouterr().err  # the last one always


def test_time_left_goes_by_the_share_of_a_run_by_minutes(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    one = Screen(None)
    one.moved(step(1, 0.5), RATES)
    clock[0] += 30.0
    one.moved(step(2, 0.75), RATES)
    assert "30.0 s left" in capsys.readouterr().err.splitlines()[-1]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    one = Screen(10)
    for number in range(1, 11):
        one.moved(step(number), RATES)
        clock[0] += 1.0
    one.record({"kind": "note", "step": 10, "text": "[red]as it is[/red]"})
    one.close()
    drawn = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "100%" in drawn
    assert "step 10/10" in drawn
    assert "12,346 tok/s" in drawn
    assert "[red]as it is[/red]" in drawn


def test_what_is_told_of_an_evaluation() -> None:
    line: dict[str, Any] = {"kind": "evaluation", "step": 7, "values": {"loss": 1.23456, "f1": 0.5}, "seconds": 61.0}
    line["samples"] = [{"source": "Un ours", "said": "a\x1b[2Jbear"}, "x" * 400]
    first, second, third = told(line)
    assert first == "step 7: loss 1.235, f1 0.5 (1 min 1 s)"
    assert second == "  source: Un ours  said: a\\x1b[2Jbear"
    assert third == "  " + "x" * 300 + "…"
    assert not list(told({"kind": "run", "step": 0}))


def test_duration() -> None:
    assert [duration(x) for x in (0.04, 59.9, 60, 3599, 7500)] == [
        "0.0 s",
        "59.9 s",
        "1 min 0 s",
        "59 min 59 s",
        "2 h 5 min",
    ]
