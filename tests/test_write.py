"""A file is the old one or the new one, whole, whatever happens on the way."""

import json
from pathlib import Path

import pytest

from qkv.write import renamed_when_whole, write_json, write_text


def test_what_is_written_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text in ("old", "new ▁ \n"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert [*tmp_path.iterdir()] == [path]


def test_json_is_indented_and_legible(tmp_path: Path) -> None:
    value = {"eos_token": "<｜end▁of▁sentence｜>", "layers": [1, 2]}
    write_json(tmp_path / "x", value)
    text = (tmp_path / "x").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '\n  "eos_token": "<｜end▁of▁sentence｜>",\n' in text
    assert text.endswith("}\n")


def test_until_the_end_readers_see_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with renamed_when_whole(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), renamed_when_whole(path) as temporary:
        temporary.write_text(f"half{1 / 0}")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_new_file_has_the_usual_permissions_also_where_another_file_took_its_place(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    with renamed_when_whole(tmp_path / "x") as temporary:
        (tmp_path / "private").touch(mode=0o600)
        (tmp_path / "private").replace(temporary)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode
