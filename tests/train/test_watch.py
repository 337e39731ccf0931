"""Watching a run: its log across restarts, and that no tracker ever stops it."""

import json
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qkv.train import log, watch
from qkv.train.recipe import Recipe
from qkv.train.watch import Step, Watch


@dataclass
class Outcome:
    values: dict[str, float]
    samples: list[Any] = field(default_factory=list)
    seconds: float = 1.0
    said: dict[str, str] = field(default_factory=dict)


def recipe(**settings: Any) -> Recipe:
    return Recipe(
        name="tiny",
        seed=5,
        model={"from": "somewhere"},
        data={"train": "x.txt"},
        objective={"kind": "causal"},
        batch={"sequences": 1},
        train={"steps": 100},
        watch={"log_every": 3, **settings},
    )


def step(number: int, **more: Any) -> Step:
    return Step(number, 10 / number, 0.5, 1e-3, 200, 0.1, 5e6, number / 10, **more)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log.NAME).read_text().splitlines()]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Watch(tmp_path, recipe(), {"parameters": 12}, total=8, peak=1e8)
    for number in range(1, 9):
        one.step(step(number))
    one.evaluated(8, Outcome({"loss": 1.5}, [{"text": "a"}], said={"bleu": "v2"}))
    one.note("by the way")
    one.close()
    run, *rest = lines(tmp_path)
    assert (run["kind"], run["step"], run["name"], run["seed"], run["parameters"]) == ("run", 0, "tiny", 5, 12)
    assert len(run["recipe"]) == 64
    assert {"torch", "qkv", "python"} <= run["versions"].keys()
    assert run["machine"]["threads"]
    steps = [line for line in rest if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 3, 6, 8]  # the last one though it isn't due
    assert [line["tokens"] for line in steps] == [200, 400, 600, 400]
    assert [line["loss"] for line in steps] == [10 / n for n in (1, 3, 6, 8)]
    assert all(line["tokens_per_second"] == 2000 and line["mfu"] == 0.5 and line["memory"] > 10**6 for line in steps)
    by_kind = {line["kind"]: line for line in rest}
    assert by_kind["evaluation"]["values"] == {"loss": 1.5}
    assert by_kind["evaluation"]["said"] == {"bleu": "v2"}
    assert by_kind["evaluation"]["samples"] == [{"text": "a"}]
    assert by_kind["note"]["text"] == "by the way"
    assert (rest[-1]["kind"], rest[-1]["why"], rest[-1]["step"]) == ("end", "finished", 8)
    said = capsys.readouterr().err
    assert "step 8/8" in said
    assert "step 8: loss 1.5" in said


def test_no_peak_no_mfu(tmp_path: Path) -> None:
    one = Watch(tmp_path, recipe())
    one.step(step(1))
    assert "mfu" not in lines(tmp_path)[-1]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    def run(first: int, last: int, resumed: int | None) -> None:
        one = Watch(tmp_path, recipe(), resumed=resumed)
        for number in range(first, last + 1):
            one.step(step(number))
            if number % 6 == 0:
                one.evaluated(number, Outcome({"loss": 1.0}))

    run(1, 10, None)  # killed: no close
    one = Watch(tmp_path, recipe(), resumed=6)
    one.evaluated(6, Outcome({"loss": 1.0}))  # it was due after the checkpoint: the log has it
    run(7, 12, 6)
    found = lines(tmp_path)
    assert [line["step"] for line in found if line["kind"] == "step"] == [1, 3, 6, 9, 12]
    assert [line["step"] for line in found if line["kind"] == "evaluation"] == [6, 12]
    assert [line["step"] for line in found if line["kind"] == "run"] == [0, 6, 6]
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl.lost-1").read_text().splitlines()] == [9]
    note = next(line for line in found if line["kind"] == "note")
    assert note["text"] == "log lines beyond step 6 are in log.jsonl.lost-1 now"


def test_a_new_run_has_a_new_log(tmp_path: Path) -> None:
    Watch(tmp_path, recipe()).step(step(1))
    before = (tmp_path / log.NAME).read_bytes()
    Watch(tmp_path, recipe()).close()
    assert (tmp_path / "log.jsonl.lost-1").read_bytes() == before
    assert [line["kind"] for line in lines(tmp_path)] == ["run", "note", "end"]
    assert lines(tmp_path)[1]["text"] == "the log of an earlier run is in log.jsonl.lost-1 now"


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Watch(tmp_path, recipe(tensorboard=True), rank=1)
    one.step(step(1))
    one.evaluated(1, Outcome({"loss": 1.0}))
    one.note("unheard")
    one.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_once_and_the_log_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Watch(tmp_path, recipe(log_every=1))
    size = (tmp_path / log.NAME).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300, limits[1]))  # one line and a part of the next
    try:
        for number in range(1, 6):
            one.step(step(number))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one.step(step(6))
    one.close()
    said = capsys.readouterr().err
    assert said.count("the log: ") == said.count("the run goes on, and what can't be written is lost") == 1
    history = log.read(tmp_path)
    assert [line["step"] for line in history.steps] == [1, 6]
    assert history.torn == 1
    assert history.ends


def test_a_folder_that_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Watch(tmp_path / "none", recipe())
    one.step(step(1))
    one.close()
    said = capsys.readouterr().err
    assert said.count("log.jsonl: ") == 1
    assert "the run goes on without it" in said
    assert "step 1" in said


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = Watch(tmp_path, recipe(tensorboard=True))
    for number in range(1, 7):
        one.step(step(number))
    one.evaluated(6, Outcome({"bleu": 30.5}, ["a prediction"]))
    resumed = Watch(tmp_path, recipe(tensorboard=True), resumed=3)
    for number in range(4, 10):
        resumed.step(step(number))
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (n, pytest.approx(10 / n)) for n in (1, 3, 6, 9)
    ]
    assert [event.value for event in events.Scalars("train/lr")] == [pytest.approx(1e-3)] * 4


class Broken:
    calls = 0

    def record(self, line: log.Line) -> None:
        Broken.calls += 1
        raise RuntimeError("no such server")

    def close(self) -> None:
        raise AssertionError("it was let go")


def test_a_tracker_that_fails_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "TensorBoard", lambda folder, resumed: Broken())
    one = Watch(tmp_path, recipe(tensorboard=True, log_every=1))
    for number in range(1, 4):
        one.step(step(number))
    one.close()
    assert Broken.calls == 1
    assert capsys.readouterr().err.count("TensorBoard: no such server; the run goes on without it") == 1
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "step"] == [1, 2, 3]


def test_tensorboard_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    Watch(tmp_path, recipe(tensorboard=True)).close()
    assert "pip install 'qkv[train]'" in capsys.readouterr().err


def test_a_screen_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch.Screen, "moved", lambda *given: 1 / 0)
    one = Watch(tmp_path, recipe(log_every=1))
    for number in range(1, 4):
        one.step(step(number))
    one.close()
    assert capsys.readouterr().err.count("the screen: division by zero") == 1
    assert len([line for line in lines(tmp_path) if line["kind"] == "step"]) == 3
