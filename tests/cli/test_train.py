"""`qkv train`: what it hands to the run, what it answers with, and what a run would cost."""

import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qkv.cli.train import STOPPED, _time
from qkv.train.stop import Stopped
from tests.cli.conftest import Command

RECIPE = """
[model.config]
model_type = "gpt2"
n_embd = 16
n_layer = 1
n_head = 2
n_positions = 16
[tokenizer]
train = "char"
[data]
train = "text.txt"
[objective]
kind = "causal"
[batch]
sequences = 4
length = 16
packing = "blocks"
[train]
steps = 3
[save]
every = 2
"""


@pytest.fixture
def recipe(command: Command) -> Path:
    """A recipe in the current folder, which is empty but for it."""
    Path("data").mkdir()
    Path("data/text.txt").write_text("to be or not to be that is the question\n" * 30)
    Path("data/tiny.toml").write_text(RECIPE)
    return Path("data/tiny.toml")


def test_dry_run_says_what_it_would_take(command: Command, recipe: Path) -> None:
    ran = command("train", recipe, "--dry-run")
    words = " ".join(ran.out.split())
    assert ran.code == 0
    assert "tiny → runs/tiny" in words
    assert "model gpt2, 3,776 parameters objective causal data 30 records steps 3 of 64 tokens, 192 tokens" in words
    for name in ("arithmetic", "memory", "peak", "speed", "time"):
        assert f" {name} " in words
    assert "guess: time: 50% of the peak" in ran.err
    assert sorted(path.name for path in Path().iterdir()) == ["data"], "nothing is written"


def test_dry_run_as_json(command: Command, recipe: Path) -> None:
    found = command("train", recipe, "train.steps=7", "--out", "there", "--dry-run", "--json").json
    assert (found["steps"], found["tokens"], found["folder"], found["records"]) == (7, 7 * 64, "there", 30)
    assert "steps = 7" in found["recipe"]
    assert sum(found["memory"].values()) > 4 * found["parameters"]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("train.stesp=3",), "the command line: there is no train.stesp; did you mean 'train.steps'?"),
        (("name=../x",), "the recipe's name, '../x', is none of a folder"),
        (("--resume", "last"), "--resume 'last' is none of auto, never, or a step's number"),
        (("data.train=lost.txt", "--dry-run"), "lost.txt is not there"),
    ],
)
def test_errors(command: Command, recipe: Path, args: tuple[str, ...], error: str) -> None:
    ran = command("train", recipe, *args)
    assert ran.code == 1
    assert error in ran.err
    assert not Path("runs").exists()


def test_a_recipe_that_is_not_there(command: Command, recipe: Path) -> None:
    ran = command("train", "data/tinny.toml")
    assert ran.code == 1
    assert "did you mean 'data/tiny.toml'?" in ran.err


def test_what_the_run_is_given(command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def train(wanted: Any, folder: Path, **options: Any) -> Any:
        calls.append((wanted.train.steps, folder, options))
        return SimpleNamespace(stopped=len(calls) > 1, to_dict=lambda: {"step": 3})

    run = ModuleType("qkv.train.run")
    run.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qkv.train.run", run)
    assert command("train", recipe, "--json").json == {"step": 3}
    assert command("train", recipe, "train.steps=5", "--out", "x", "--resume", "2", "--allow-changed").code == STOPPED
    assert calls == [
        (3, Path("runs/tiny"), {"resume": "auto", "allow_changed": False}),
        (5, Path("x"), {"resume": 2, "allow_changed": True}),
    ]


def test_a_signal_while_a_run_is_prepared(command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: Any, **options: Any) -> Any:
        raise Stopped(signal.SIGTERM)

    run = ModuleType("qkv.train.run")
    run.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "qkv.train.run", run)
    ran = command("train", recipe)
    assert (ran.code, ran.out) == (STOPPED, "")
    assert "SIGTERM arrived: what runs/tiny holds is whole" in ran.err


def test_help_says_the_exit_codes(command: Command) -> None:
    said = " ".join(command("train", "--help").out.split())
    assert f"{STOPPED} stopped by a signal with everything saved" in said
    assert STOPPED not in {0, 1, 2, *(128 + number for number in signal.Signals)}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.4, "4 s"), (100, "2 min"), (3600, "1 h 0 min"), (12_345, "3 h 26 min"), (1e6, "11 days 13 h")],
)
def test_time(seconds: float, words: str) -> None:
    assert _time(seconds) == words
