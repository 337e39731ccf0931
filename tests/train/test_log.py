"""The log of a run: whole lines, read back, and cut where a run goes on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import NotFound
from qkv.train import log
from qkv.train.log import Log


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(folder: Path, *steps: int, kind: str = "step") -> None:
    one = Log(folder)
    for step in steps:
        one.record({"kind": kind, "step": step, "loss": step / 2})
    one.close()


def test_a_line_is_there_at_once(tmp_path: Path) -> None:
    one = Log(tmp_path)
    one.record({"kind": "note", "step": 3, "text": "naïve\n✓"})
    (line,) = lines(one.path)
    assert {"kind": "note", "step": 3, "text": "naïve\n✓"}.items() <= line.items()
    assert line["time"].endswith("+00:00")
    one.close()


def test_it_is_appended_to(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    write(tmp_path, 3)
    assert [line["step"] for line in log.read(tmp_path).steps] == [1, 2, 3]


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    one = Log(tmp_path)
    one.record({"kind": "step", "step": 1, "loss": float("nan"), "lr": torch.tensor(2.5), "n": np.int64(3)})
    (line,) = log.read(tmp_path).steps
    assert (line["loss"], line["lr"], line["n"]) == ("nan", 2.5, 3)
    assert np.isnan(log.number(line["loss"]) or 0)
    assert log.number("x") is None
    assert log.number(None) is None
    assert log.number(True) is None


def test_by_kind(tmp_path: Path) -> None:
    for kind in ("run", "step", "evaluation", "note", "end"):
        write(tmp_path, 1, kind=kind)
    history = log.read(tmp_path)
    assert [len(x) for x in (history.runs, history.steps, history.evaluations, history.notes, history.ends)] == [1] * 5
    with pytest.raises(NotFound, match=r"log\.jsonl is not there"):
        log.read(tmp_path / "none")


def test_a_torn_line_is_counted(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    path = tmp_path / log.NAME
    path.write_bytes(path.read_bytes()[:-5])
    history = log.read(tmp_path)
    assert [line["step"] for line in history.steps] == [1]
    assert history.torn == 1


def test_later_lines_are_moved_aside(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4)
    before = (tmp_path / log.NAME).read_bytes()
    aside = log.cut(tmp_path, 2)
    assert aside == tmp_path / "log.jsonl.lost-1"
    assert [line["step"] for line in lines(tmp_path / log.NAME)] == [1, 2]
    assert (tmp_path / log.NAME).read_bytes() + aside.read_bytes() == before
    assert log.cut(tmp_path, 2) is None
    write(tmp_path, 3)
    assert log.cut(tmp_path, -1) == tmp_path / "log.jsonl.lost-2"
    assert (tmp_path / log.NAME).read_bytes() == b""


def test_nothing_to_cut(tmp_path: Path) -> None:
    assert log.cut(tmp_path, 5) is None
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 200), st.integers(0, 6))
def test_cut_after_a_crash_anywhere(tmp_path_factory: pytest.TempPathFactory, end: int, step: int) -> None:
    """Whatever was written when the process died: no line is lost or doubled, and what is kept is whole."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, 1, 2, 3, 4)
    path = folder / log.NAME
    whole = path.read_bytes()[:end]
    path.write_bytes(whole)
    aside = log.cut(folder, step)
    left = aside.read_bytes() if aside else b""
    assert path.read_bytes() + left == whole
    assert log.read(folder).torn == 0
    assert all(line["step"] <= step for line in log.read(folder).steps)


def test_what_a_line_can_hold() -> None:
    @dataclass
    class Shown:
        text: str
        score: float

    assert log.plain({"a": [Shown("x", float("inf"))], 1: (Path("p"),)}) == {
        "a": [{"text": "x", "score": "inf"}],
        "1": ["p"],
    }


def test_memory() -> None:
    before = log.memory()
    held = bytearray(b"x" * 200_000_000)
    assert log.memory() - before > 150_000_000
    assert len(held)
