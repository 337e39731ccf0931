"""`qkv tokenize`: pieces and ids, both ways."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from qkv.cli.tokenize import _load, _pieces
from tests.cli.conftest import Command
from tests.inputs.samples import any_text

TEXT = "The quick 日本"


def test_pieces_stand_above_their_ids(command: Command, folder: Path) -> None:
    found = command("tokenize", TEXT, "-m", folder, "--json").json
    assert found["text"] == TEXT
    assert found["count"] == len(found["tokens"])
    assert "".join(token["text"] for token in found["tokens"]) == TEXT
    ran = command("tokenize", TEXT, "-m", folder)
    above, below = ran.out.splitlines()
    assert below.split() == [str(token["id"]) for token in found["tokens"]]
    assert above.split()[0] == "The"
    assert "·" in above
    assert (
        ran.err
        == f"{found['count']} tokens, {len(TEXT)} characters, {len(TEXT) / found['count']:.2f} characters a token\n"
    )


def test_long_texts_wrap_in_pairs_of_lines(command: Command, folder: Path) -> None:
    ran = command("tokenize", "quick brown fox\n" * 20, "-m", folder)
    lines = ran.out.splitlines()
    assert len(lines) > 2
    assert len(lines) % 2 == 0
    assert max(map(len, lines)) <= 100
    assert all(ids.replace(" ", "").isdigit() for ids in lines[1::2])
    assert "↵" in ran.out


def test_decode_is_the_way_back(command: Command, folder: Path) -> None:
    ids = [token["id"] for token in command("tokenize", TEXT, "-m", folder, "--json").json["tokens"]]
    assert command("tokenize", "--decode", ", ".join(map(str, ids)), "-m", folder).out == TEXT + "\n"
    assert command("tokenize", "--decode", " ".join(map(str, ids)), "-m", folder, "--json").json["text"] == TEXT


def test_standard_input_is_the_text_where_none_is_given(command: Command, folder: Path) -> None:
    assert command("tokenize", "-m", folder, "--json", stdin="a\nb\n").json["text"] == "a\nb"
    assert command("tokenize", "", "-m", folder, "--json").json["tokens"] == []


def test_a_gguf_file_has_its_tokenizer_inside(command: Command, gguf_file: Path) -> None:
    found = command("tokenize", "the cat is", "-m", gguf_file, "--json").json
    assert [token["token"] for token in found["tokens"]] == ["<s>", "▁the", "▁cat", "▁is"]
    assert command("tokenize", "the cat", "-m", gguf_file, "--json", "--no-special").json["count"] == 2


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(any_text)
def test_pieces_make_up_the_text(folder: Path, text: str) -> None:
    tokenizer = _load(str(folder))
    assert "".join(_pieces(tokenizer, tokenizer.encode(text))) == text


WRONG = [
    (["--decode", "5x"], "--decode takes whole numbers, as 504,3575,282; got '5x'"),
    (["--decode", ""], "--decode takes whole numbers, as 504,3575,282; got ''"),
    (["--decode", "99999"], "no token has the id 99999"),
    (["text", "--decode", "5"], "--decode takes the ids; leave out the text"),
    ([], "no text was given: standard input is empty"),
]


@pytest.mark.parametrize(("args", "message"), WRONG)
def test_wrong_input_is_named(command: Command, folder: Path, args: list[str], message: str) -> None:
    ran = command("tokenize", *args, "-m", folder)
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err


def test_a_model_without_a_tokenizer_is_named(command: Command, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    ran = command("tokenize", "x", "-m", tmp_path / "bare")
    assert ran.code == 1
    assert "no tokenizer.json here" in ran.err
