"""`qkv predict`: the head decides; results on standard output, everything else beside it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qkv
from qkv.cli.predict import _inputs
from qkv.errors import InputError
from tests.cli.conftest import Command, Terminal
from tests.tasks.fakes import theirs, wordpiece

KINDS = {
    "classify": "SequenceClassification",
    "tag": "TokenClassification",
    "answer": "QuestionAnswering",
    "fill": "MaskedLM",
}
TEXT = "Anna Smith lives in New York with Bob."
MASKED = "Paris is the [MASK] of France"
QUESTION = "Who lives in New York?"
ASKED = {"classify": [TEXT], "tag": [TEXT], "answer": ["--question", QUESTION, "--context", TEXT], "fill": [MASKED]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random BERTs as transformers writes them, one a head."""
    made = {}
    for name, kind in KINDS.items():
        torch.manual_seed(1)
        made[name] = tmp_path_factory.mktemp("models") / name
        labels = ("no", "yes") if name == "answer" else ("O", "B-PER", "I-PER", "B-LOC")
        model, _ = theirs(made[name], wordpiece(), kind, labels)
        if name in ("tag", "classify"):  # so that no label takes all
            torch.nn.init.normal_(model.classifier.weight)
            torch.nn.init.zeros_(model.classifier.bias).data[0] = -9.0 if name == "tag" else 0.0
        model.save_pretrained(made[name])
    return made


def expected(folder: Path, *texts: Any, **options: Any) -> Any:
    return qkv.load(folder).predict(*texts, **options)


@pytest.mark.parametrize("name", KINDS)
def test_json_is_the_result(name: str, command: Command, models: dict[str, Path]) -> None:
    found = command("predict", *ASKED[name], "-m", models[name], "--json").json
    pair = (QUESTION, TEXT) if name == "answer" else (ASKED[name][0],)
    want = json.loads(json.dumps(expected(models[name], *pair).to_dict()))
    assert {key: found[key] for key in want} == want
    assert found["text"] == pair[0]
    assert (found["dtype"], found["notes"]) == ("float32", [])
    assert str(models[name]) in found["model"]


def test_labels_are_a_table_with_bars(command: Command, models: dict[str, Path]) -> None:
    want = expected(models["classify"], TEXT)
    ran = command("predict", TEXT, "-m", models["classify"])
    rows = [line.split() for line in ran.out.splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [(label, f"{score:.4f}") for label, score in want.scores.items()]
    assert ran.out.count("━") + ran.out.count("─") == 4 * 24
    assert (ran.code, ran.err) == (0, "")
    short = command("predict", TEXT, "-m", models["classify"], "--top", 1).out.splitlines()
    assert len(short) == 2
    assert short[1] == "… and 3 labels more; --top 4 shows all"


def test_spans_stand_in_the_text_and_in_a_list(command: Command, models: dict[str, Path]) -> None:
    want = expected(models["tag"], TEXT)
    first, *rows = command("predict", TEXT, "-m", models["tag"]).out.splitlines()
    assert first == str(want)
    assert want.spans
    assert [row.split()[-1] for row in rows] == [f"{span.start}–{span.end}" for span in want.spans]
    for strategy in ("max", "mean", "none"):
        found = command("predict", TEXT, "-m", models["tag"], "--strategy", strategy, "--json").json
        assert found["spans"] == [*expected(models["tag"], TEXT, strategy=strategy).to_dict()["spans"]]


def test_an_answer_stands_in_its_sentence(command: Command, models: dict[str, Path], tmp_path: Path) -> None:
    context = f"It is late. {TEXT} Paris is in France."
    want = expected(models["answer"], QUESTION, context, top=2, no_answer=True, max_answer=3)
    (tmp_path / "context.txt").write_text(context, encoding="utf-8")
    options = ("-m", models["answer"], "--top", 2, "--no-answer", "--max-answer", 3)
    ran = command("predict", "--question", QUESTION, "--context", f"@{tmp_path / 'context.txt'}", *options)
    best = next(one for one in want.answers if one.text)
    assert f"{best.text}  {best.score:.4f}  {best.start}–{best.end}" in ran.out
    assert any(line.strip() and line.strip() in context for line in ran.out.splitlines())
    assert command("predict", "--question", QUESTION, *options, stdin=context).out == ran.out
    assert command("predict", QUESTION, "--context", context, *options).out == ran.out


def test_masks_are_filled(command: Command, models: dict[str, Path]) -> None:
    want = expected(models["fill"], MASKED, top=3).masks[0]
    rows = command("predict", MASKED, "-m", models["fill"], "--top", 3).out.splitlines()
    assert [row.split()[0] for row in rows] == [one.text for one in want]
    assert all(one.filled in row for one, row in zip(want, rows, strict=True))
    assert "mask 2" in command("predict", "[MASK] [MASK]", "-m", models["fill"]).out


def test_a_file_gives_a_result_a_line(command: Command, models: dict[str, Path], tmp_path: Path) -> None:
    lines = [TEXT, "a", "The quick brown fox 😀"]
    (tmp_path / "lines.txt").write_text("\r\n".join(lines) + "\n", encoding="utf-8", newline="")
    want = expected(models["classify"], lines)
    args = ("predict", "--file", tmp_path / "lines.txt", "-m", models["classify"])
    assert command(*args).out.splitlines() == [f"{result}\t{text}" for text, result in zip(lines, want, strict=True)]
    rows = [json.loads(line) for line in command(*args, "--json").out.splitlines()]
    assert rows == [{"text": text, **result.to_dict()} for text, result in zip(lines, want, strict=True)]
    stdin = command("predict", "--file", "-", "-m", models["classify"], "--json", stdin="\n".join(lines))
    assert [json.loads(line) for line in stdin.out.splitlines()] == rows
    one = command("predict", "--file", "-", "-m", models["classify"], "--json", stdin="a")
    assert json.loads(one.out)["text"] == "a"
    assert len(one.out.splitlines()) == 1
    paired = command(*args, "--pair", "b", "--json").out.splitlines()
    assert [json.loads(line)["score"] for line in paired] == [r.score for r in expected(models["classify"], lines, "b")]
    tagged = command("predict", "--file", tmp_path / "lines.txt", "-m", models["tag"]).out.splitlines()
    assert tagged == [str(result) for result in expected(models["tag"], lines)]


def test_what_was_read_in_parts_is_told(command: Command, models: dict[str, Path]) -> None:
    long = "a " * 200
    ran = command("predict", long, "-m", models["classify"], "--on-long", "window", "--stride", 0)
    assert (ran.code, ran.err) == (0, "read in 4 windows\n")
    ran = command("predict", long, "-m", models["classify"], "--on-long", "truncate")
    assert ran.err == "138 tokens at the end were left out\n"
    ran = command("predict", "--file", "-", "-m", models["tag"], "--window", 10, stdin=f"a\n{long}")
    assert ran.err.startswith("line 2: read in ")


def test_a_terminal_sees_colours_and_no_control_characters(
    command: Command, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    command("predict", TEXT + "\x1b]0;x\x07", "-m", models["tag"])
    assert "\x1b[3" in terminal.getvalue()
    assert "\x1b]0" not in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


WRONG: list[tuple[str, list[str], int, str]] = [
    ("classify", ["a " * 99], 1, "the text has 101 tokens; the most is 64: the context that"),
    ("classify", ["a " * 99], 1, "--on-long truncate reads the beginning, --on-long window all of it"),
    ("classify", ["a", "--on-long", "cut"], 1, "on_long is 'cut', none of error, truncate, window"),
    ("classify", ["a", "--strategy", "max"], 1, "classify has no option 'strategy'"),
    ("classify", ["a", "--top", "0"], 2, "'--top'"),
    ("classify", ["a", "--file", "x"], 1, "TEXT, --question and --file each give the text"),
    ("classify", ["a", "--pair", "b", "--context", "c"], 1, "--pair is the second text of a pair"),
    ("classify", ["--file", "./nowhere"], 1, "./nowhere: No such file"),
    ("classify", [], 1, "no text was given: standard input is empty"),
    ("tag", ["\u200b"], 1, "has no token: there is nothing to read"),
    ("tag", ["a", "--pair", "b"], 1, "tagging takes one text, without a second"),
    ("tag", ["a", "--stride", "64"], 1, "stride is 64, and a window 64 tokens"),
    ("tag", ["a", "--window", "65"], 1, "window is 65 tokens; the most is 64"),
    ("answer", ["who"], 1, "give the context by --context"),
    ("answer", ["--question", "who"], 1, "no context was given: standard input is empty"),
    ("answer", ["--question", "who", "--context", "@./nowhere"], 1, "./nowhere: No such file"),
    ("answer", ["--question", "a " * 80, "--context", "b"], 1, "leave no room for the rest in 64"),
    ("fill", ["Paris"], 1, "the text has no mask: write [MASK] where a word is missing"),
]


@pytest.mark.parametrize(("name", "args", "code", "message"), WRONG)
def test_wrong_input_is_named(
    name: str, args: list[str], code: int, message: str, command: Command, models: dict[str, Path]
) -> None:
    ran = command("predict", *args, "-m", models[name])
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_line_that_cannot_be_read_is_named(command: Command, models: dict[str, Path]) -> None:
    ran = command("predict", "--file", "-", "-m", models["classify"], stdin="a\n\nb\n")
    assert (ran.code, ran.out, ran.err) == (1, "", "error: line 2: '' has no token: there is nothing to read\n")
    ran = command("predict", "--file", "-", "-m", models["classify"], stdin="a\nb\n" + "a " * 99)
    assert ran.err.startswith("error: line 3 has 101 tokens; the most is 64")


def test_a_model_for_something_else_is_named(command: Command, folder: Path) -> None:
    ran = command("predict", "a", "-m", folder)
    assert ran.code == 1
    assert "head is LMHead: generate continues a text with it" in ran.err
    assert "predict needs a model with a head for it" in command("predict", "a").err
    assert command("predict", "a", "-m", folder, "--json").json["error"]["type"] == "InputError"


def test_files_that_are_no_texts(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"a\xff")
    (tmp_path / "empty").write_bytes(b"")
    for file, message in (("bytes", "bytes is not UTF-8 .byte 1."), ("empty", "empty is empty")):
        for args in ((None, None, None, None, str(tmp_path / file)), ("q", None, None, f"@{tmp_path / file}", None)):
            with pytest.raises(InputError, match=message):
                _inputs(*args)
