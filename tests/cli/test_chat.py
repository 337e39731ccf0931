"""`qkv chat`: typed at a terminal, and piped in."""

import builtins
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qkv.cli.app import run
from qkv.generate.result import Piece
from tests.cli.conftest import Command, Ran, Terminal

Typed = Callable[..., Ran]


signs: list[str] = []  # what input() was asked to show


@pytest.fixture
def typed(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run `qkv chat` and type these lines; an exception among them is what happens instead of a line."""

    def call(*lines: str | type[BaseException], options: tuple[str, ...] = ()) -> Ran:
        waiting = iter(lines)

        def answer(prompt: str = "") -> str:
            signs.append(prompt)
            line = next(waiting, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(builtins, "input", answer)
        code = run(["chat", "-m", str(folder), "--max-tokens", "3", *options])
        return Ran(code, *capsys.readouterr())

    return call


def turns(ran: Ran) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in ran.json["messages"] if m["role"] != "assistant"]


def test_each_piped_line_is_a_turn(command: Command, folder: Path) -> None:
    ran = command("chat", "-m", folder, "--max-tokens", 4, stdin="one two\n\nthree\n")
    again = command("chat", "-m", folder, "--max-tokens", 4, "--json", stdin="one two\n\nthree\n")
    answers = [m["content"] for m in again.json["messages"] if m["role"] == "assistant"]
    assert (ran.code, ran.out) == (0, "".join(f"{answer}\n" for answer in answers))
    assert [g["text"] for g in again.json["generations"]] == answers
    assert turns(again) == [("user", "one two"), ("user", "three")]
    assert answers[0] in again.err


def test_a_system_prompt_and_a_message_of_several_lines(command: Command, folder: Path) -> None:
    text = '"""\none\n/two\n"""\n three\n'
    ran = command("chat", "-m", folder, "--system", "Be brief.", "--max-tokens", 2, "--json", stdin=text)
    assert turns(ran) == [("system", "Be brief."), ("user", "one\n/two"), ("user", " three")]


def test_commands(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    lines = (
        "one",
        "/reset",
        "two",
        f"/save {path}",
        "/system Be kind.",
        "three",
        "/help",
        "/nonsense",
        "/quit",
        "four",
    )
    ran = typed(*lines, options=("--json",))
    assert ran.code == 0
    assert turns(ran) == [("system", "Be kind."), ("user", "three")]
    assert json.loads(path.read_text())["messages"][0] == {"role": "user", "content": "two"}
    assert "/save FILE     write the conversation" in ran.err
    assert "error: there is no '/nonsense' here" in ran.err


def test_ctrl_c_stops_the_answer_and_not_the_program(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Iterator[Piece]:
        yield Piece("half an", 0, [5])
        raise KeyboardInterrupt

    monkeypatch.setattr("qkv.cli.talk.generate", interrupted)
    ran = typed("one", KeyboardInterrupt, "two", options=("--json",))
    assert ran.code == 0
    assert [m["content"] for m in ran.json["messages"]] == ["one", "half an", "two", "half an"]
    assert ran.err.count("stopped (Ctrl-D leaves)") == 3


def test_an_error_ends_a_typed_turn_and_no_more(typed: Typed) -> None:
    ran = typed("x " * 70_000, "one", options=("--json",))
    assert ran.code == 0
    assert turns(ran) == [("user", "one")]
    assert "error: " in ran.err


def test_an_error_ends_a_piped_program(command: Command, folder: Path) -> None:
    ran = command("chat", "-m", folder, "--json", stdin="x " * 70_000)
    assert ran.code == 1
    assert ran.json["error"]["type"] == "InputError"


def test_ctrl_c_ends_a_piped_program(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Iterator[Piece]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("qkv.cli.talk.generate", interrupted)
    assert command("chat", "-m", folder, stdin="one\ntwo\n").code == 130


def test_the_prompt_sign_never_goes_into_a_pipe(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    signs.clear()
    ran = typed("/quit")
    assert (ran.out, ran.err[-2:], signs) == ("", "> ", [""])
    monkeypatch.setattr(sys, "stdout", Terminal())
    typed('"""', "one", '"""')
    assert signs[1:] == ["> ", "… ", "… ", "> "]


def test_wrong_input_is_named(command: Command, folder: Path) -> None:
    ran = command("chat", "-m", folder, "--temperature", "-1", stdin="x\n")
    assert ran.code == 1
    assert "temperature must be" in ran.err
    raw = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8")
    ran = command("chat", "-m", folder, stdin=raw)
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "error: standard input is not UTF-8 (byte 0)")


def test_guesses_change_no_answer(command: Command, folder: Path) -> None:
    args, lines = ("chat", "-m", folder, "--max-tokens", 20, "--json"), "one two one two one\nthree three three\n"
    plain = command(*args, stdin=lines).json
    for options in (("--lookup", 4), ("--draft", folder)):
        found = command(*args, *options, stdin=lines).json
        assert found["messages"] == plain["messages"]
        assert sum(made["timing"]["guessed"] for made in found["generations"]) > 0
    ran = command(*args, "--lookup", 4, "--draft", folder, stdin=lines)
    assert (ran.code, ran.json["error"]["type"]) == (1, "InputError")
