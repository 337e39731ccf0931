"""`qkv embed`: a vector a line, in a file or on standard output; what was cut is told, and nothing is overwritten."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qkv
from qkv.cli import embed as module
from qkv.spec import Pooling
from qkv.tasks.embed import ON_LONG
from tests.cli.conftest import Command, Terminal
from tests.sentences import DIM, LONG, TEXTS, bert, sentence_folder


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence_folder(tmp_path_factory.mktemp("models"), prompts={"query": "query: "})


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def vectors(out: str) -> Any:
    return np.array([json.loads(line)["embedding"] for line in out.splitlines()], np.float32)


def test_each_line_is_a_row_of_the_file(command: Command, sentence: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npy"
    ran = command("embed", lines, "-m", sentence, "--out", out, "--budget", 20)
    assert (ran.code, ran.out) == (0, "")
    found = np.load(out)
    assert (found.shape, found.dtype) == ((len(TEXTS), DIM), np.float32)
    np.testing.assert_allclose(found, qkv.load(sentence).embed(TEXTS), atol=1e-6)
    (last,) = ran.err.splitlines()
    assert last.startswith(f"{out} · {len(TEXTS)} lines of {DIM} · ")
    assert last.endswith(" tokens/s")


def test_without_a_file_jsonl_is_printed(command: Command, sentence: Path, lines: Path, tmp_path: Path) -> None:
    ran = command("embed", lines, "-m", sentence)
    np.testing.assert_array_equal(vectors(ran.out), qkv.load(sentence).embed(TEXTS))
    out = tmp_path / "vectors.jsonl"
    assert command("embed", "-", "-m", sentence, "--out", out, "--text", stdin=lines.read_text()).out == ""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    np.testing.assert_array_equal(vectors(out.read_text()), vectors(ran.out))


@pytest.mark.parametrize(
    ("raw", "count"),
    [("a\nb", 2), ("a\nb\n", 2), ("a\n\n\nb\n\n", 5), ("a\r\nb\r\n", 2), ("a\x0bb\u2028c\x85d\n", 1), ("\n", 1)],
)
def test_line_n_is_row_n(command: Command, sentence: Path, tmp_path: Path, raw: str, count: int) -> None:
    (tmp_path / "x.txt").write_bytes(raw.encode())
    rows = command("embed", tmp_path / "x.txt", "-m", sentence, "--text").out.splitlines()
    assert [json.loads(row)["text"] for row in rows] == [line.removesuffix("\r") for line in raw.split("\n")][:count]


def test_a_carriage_return_on_standard_input_ends_no_line(command: Command, sentence: Path) -> None:
    piped = io.TextIOWrapper(io.BytesIO(b"a\rb\nc\r\n"), encoding="utf-8")
    rows = command("embed", "-", "-m", sentence, "--text", stdin=piped).out.splitlines()
    assert [json.loads(row)["text"] for row in rows] == ["a\rb", "c"]


def test_what_is_too_long_is_an_error_that_names_the_line_and_the_option(
    command: Command, sentence: Path, lines: Path, tmp_path: Path
) -> None:
    lines.write_text(f"fox\n{LONG}\n")
    out = tmp_path / "x.npy"
    ran = command("embed", lines, "-m", sentence, "--out", out)
    assert (ran.code, list(tmp_path.glob("*.npy")), list(tmp_path.glob(".*"))) == (1, [], [])
    assert "line 2 has 112 tokens, and 48 are read (as its folder says); --on-long truncate cuts" in ran.err
    cut = command("embed", lines, "-m", sentence, "--on-long", "truncate", "--out", out)
    assert "1 longer than 48 tokens: cut by 64 of their 112 tokens; the longest is line 2, with 112" in cut.err
    said = command("embed", lines, "-m", sentence, "--on-long", "chunk", "--out", out, "--json", "--force")
    assert said.err == ""
    assert said.json["long"] == [{"line": 2, "tokens": 112, "dropped": 0, "windows": 3}]
    model = qkv.load(sentence)
    np.testing.assert_allclose(np.load(out), model.embed(["fox", LONG], on_long="chunk"), atol=1e-6)


def test_the_report_in_json(command: Command, sentence: Path, lines: Path, tmp_path: Path) -> None:
    options = ("--dtype", "bfloat16", "--threads", 1, "--length", 30, "--prompt-name", "query")
    said = command("embed", lines, "-m", sentence, "--out", tmp_path / "x.jsonl", "--json", *options).json
    expected = {"lines": len(TEXTS), "dim": DIM, "dtype": "bfloat16", "limit": 30, "on_long": "error", "long": []}
    assert {name: said[name] for name in expected} == expected
    assert said["tokens"] == sum(len(qkv.load(sentence).tokenizer.encode(f"query: {text}")) for text in TEXTS)
    assert said["tokens_per_second"] == pytest.approx(said["tokens"] / said["seconds"])
    found = vectors((tmp_path / "x.jsonl").read_text())
    expected = qkv.load(sentence, dtype="bfloat16").embed(TEXTS, prompt_name="query")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_prompt_and_a_pooling_of_ones_own(command: Command, lines: Path, tmp_path: Path) -> None:
    plain = bert(tmp_path / "bert")
    ran = command("embed", lines, "-m", plain)
    assert ran.code == 1
    assert "--pool" in ran.err
    found = vectors(command("embed", lines, "-m", plain, "--pool", "cls", "--prompt", "the ").out)
    model = qkv.load(plain, new_head=qkv.spec.Pool(how="cls", normalize=True))
    np.testing.assert_array_equal(found, model.embed(TEXTS, prompt="the "))


WRONG = [
    (["--on-long", "cut"], "--on-long is one of error, truncate, chunk, got 'cut'"),
    (["--pool", "sum"], "--pool is one of mean, cls, max, last, got 'sum'"),
    (["--out", "x.csv"], "must end in .npy or .jsonl"),
    (["--out", "none/x.npy"], "there is no folder none"),
    (["--out", "folder.npy"], "this is a folder"),
    (["--out", "there.npy"], "there.npy is already there; --force overwrites it"),
    (["--out", "x.npy", "--text"], "--text needs JSONL"),
    (["--json"], "give them a file with --out"),
    (["--prompt-name", "passage"], "this model has no prompt named 'passage'; it has: "),
]


@pytest.mark.parametrize(("args", "message"), WRONG)
def test_wrong_input_is_named(command: Command, sentence: Path, lines: Path, args: list[str], message: str) -> None:
    Path("folder.npy").mkdir()
    Path("there.npy").write_text("mine")
    ran = command("embed", lines, "-m", sentence, *args)
    assert ran.code == 1
    assert message in ran.err
    assert Path("there.npy").read_text() == "mine"
    assert len(list(Path.cwd().iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "lines.txt: No such file"), (b"", "is empty"), (b"a\n\xff", "is not UTF-8 (byte 2)")],
)
def test_a_file_without_lines_is_named(command: Command, lines: Path, content: bytes | None, message: str) -> None:
    lines.unlink()
    if content is not None:
        lines.write_bytes(content)
    ran = command("embed", lines)
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert "no text was given: standard input is empty" in command("embed", "-", stdin="").err


def test_overwriting_is_whole_or_not_at_all(command: Command, sentence: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    out.write_text("mine")
    assert command("embed", lines, "-m", sentence, "--out", out, "--force", "--length", 3).code == 1  # too short
    assert out.read_text() == "mine"
    assert command("embed", lines, "-m", sentence, "--out", out, "--force").code == 0
    assert np.load(out).shape == (len(TEXTS), DIM)


def test_progress_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(
    command: Command, sentence: Path, lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY", 0.0)
    said = command("embed", lines, "-m", sentence, "--budget", 20).err.splitlines()
    assert len(said) > 3
    assert said[0].startswith("1 of ") or " of 8 lines (" in said[0]
    assert " tokens/s" in said[0]
    monkeypatch.setattr(sys, "stderr", Terminal())
    command("embed", lines, "-m", sentence)
    assert "embedding 8 lines" in sys.stderr.getvalue()


def test_the_words_are_those_of_the_library() -> None:
    assert module.ON_LONG == ON_LONG
    assert set(module.POOLINGS) == set(Pooling.__args__)
