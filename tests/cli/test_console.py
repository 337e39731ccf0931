"""Numbers, notes, errors and standard input, as every verb shows them."""

import io
import json
import sys

import pytest

from qkv.cli.console import binary, fail, note, print_json, read_stdin, short
from qkv.errors import InputError, NotFound
from tests.cli.conftest import Terminal


def test_bytes_and_counts_as_people_read_them() -> None:
    assert [binary(n) for n in (0, 1023, 327_680, 2.5 * 2**20, 2**50, 2**70)] == [
        "0 bytes",
        "1,023 bytes",
        "320 KiB",
        "2.5 MiB",
        "1 PiB",
        "1,048,576 PiB",
    ]
    assert [short(n) for n in (7, 999, 1000, 134_515_008, 68_976_648_192, 1e15)] == [
        "7",
        "999",
        "1 K",
        "134.5 M",
        "68.98 B",
        "1,000 T",
    ]
    assert short(2.5e9, "KMGTP") == "2.5 G"


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        note("hello")
        fail(NotFound("there is none"), as_json=False)
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = "hello\nerror: there is none\n"
    assert noted(io.StringIO()) == plain
    assert noted(Terminal()) == "\x1b[2mhello\x1b[0m\n\x1b[1;31merror:\x1b[0m there is none\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert noted(Terminal()) == plain


def test_an_error_with_json_is_an_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    fail(NotFound("x: not there"), as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"type": "NotFound", "message": "x: not there"}}
    assert err == "error: x: not there\n"


def test_json_survives_a_stdout_without_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print_json({"text": "日本 → é"})
    assert json.loads(raw.getvalue()) == {"text": "日本 → é"}


def test_stdin_loses_one_line_end_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" two\n lines \n\n"))
    assert read_stdin("text") == " two\n lines \n"


WRONG = [
    (io.StringIO(""), "no text was given: standard input is empty"),
    (Terminal("x"), "no text was given: write it after the verb"),
    (None, "no text was given"),
    (io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf-8"), "standard input is not UTF-8 (byte 2)"),
]


@pytest.mark.parametrize(("stream", "message"), WRONG)
def test_stdin_without_a_text_is_an_error(
    stream: io.TextIOBase | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", stream)
    with pytest.raises(InputError) as error:
        read_stdin("text")
    assert message in str(error.value)
