"""JSON under its rules: what is an object comes through as it is, and what breaks them is named."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import CorruptFile, NotFound, QkvError, TokenizerError
from qkv.strict_json import MAX_DEPTH, parse_json, read_json, read_json_list

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(), child, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_any_json_object_is_read_as_it_is(value: dict) -> None:
    assert parse_json(json.dumps(value).encode(), where="x") == value


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0eE.-NaIt \\u', max_size=40).map(str.encode))
def test_any_other_bytes_are_a_corrupt_file(raw: bytes) -> None:
    with suppress(CorruptFile):
        assert isinstance(parse_json(raw, where="x"), dict)


def test_a_list_is_read_by_the_same_rules(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('[{"a": 1}, 2]')
    assert read_json_list(file) == [{"a": 1}, 2]
    with pytest.raises(CorruptFile, match="must be a JSON object, and is list"):
        read_json(file)
    for content, says in (('{"a": 1}', "must be a JSON list, and is dict"), ('[{"a": 1, "a": 2}]', "key 'a' appears")):
        file.write_text(content)
        with pytest.raises(CorruptFile, match=says):
            read_json_list(file)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "empty"),
        (b"\0" * 30, "empty"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' appears 2 times"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' appears 2 times"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "beyond the range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "nested"),
        (b'{"a": ' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested more than 64"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        (b"<!DOCTYPE html>", "looks like HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("error", [CorruptFile, TokenizerError])
def test_what_breaks_the_rules_is_named(tmp_path: Path, raw: bytes, says: str, error: type[QkvError]) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(error, match=says) as caught:
        read_json(path, error=error)
    assert str(path) in str(caught.value)


def test_the_deepest_json_that_is_allowed_is_read() -> None:
    raw = b'{"a": ' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH
    assert parse_json(raw, where="x")


def test_a_file_that_is_too_long_missing_or_a_pipe_is_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"{" + b" " * 99 + b"}")
    assert read_json(path, limit=101) == {}
    with pytest.raises(CorruptFile, match="101 bytes; a JSON file of more than 100"):
        read_json(path, limit=100)
    with pytest.raises(NotFound, match="absent"):
        read_json(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorruptFile, match="not a regular file"):
        read_json(tmp_path / "pipe")


def test_a_file_that_may_not_be_read_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    (tmp_path / "mine").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", refuse)  # file modes don't stop root, who may run the tests
    with pytest.raises(NotFound, match="mine: Permission denied"):
        read_json(tmp_path / "mine")
