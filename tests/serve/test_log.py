"""Lines: one of JSON each, whatever is in it; ids; and what is told of failures."""

import contextlib
import io
import json
import logging
import os
import sys

import pytest

from qkv.serve.log import Lines, Log, request_id, standard_error, where_from


def test_a_line_is_a_line() -> None:
    out = io.StringIO()
    Log(out).write("request", path="a\nb\x1b[31m\u2028", none=None, error=ValueError("x"))
    (line,) = out.getvalue().splitlines()
    assert "\x1b" not in line
    found = json.loads(line)
    assert found["path"] == "a\nb\x1b[31m\u2028"
    assert found["error"] == "x"
    assert "none" not in found
    assert found["time"].endswith("Z")


def test_lines_of_several_threads_stay_apart() -> None:
    """A line and its end are written at once."""
    written: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    log = Log(Stream())
    log.write("request", id="a")
    log.write("request", id="b")
    assert [json.loads(line)["id"] for line in written] == ["a", "b"]
    assert all(line.endswith("}\n") for line in written)


def test_a_log_that_nobody_reads_any_more_ends_nothing() -> None:
    """As under `qkv serve … 2>&1 | head`."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        os.close(reader)
        Log(stream).write("request", id="a")
        with contextlib.suppress(BrokenPipeError):
            stream.close()
        Log(stream).write("request", id="b")


def test_steps_of_starting_up() -> None:
    out = io.StringIO()
    log = Log(out)
    with log.step("weights", model="m"):
        pass
    found = json.loads(out.getvalue())
    assert (found["event"], found["step"], found["model"]) == ("start", "weights", "m")
    assert 0 <= found["seconds"] <= found["since"]


def test_without_a_stream_nothing_is_written() -> None:
    Log().write("request", a=1)
    assert standard_error().stream is sys.stderr


@pytest.mark.parametrize("given", ["abc", "a-b_C1", "x" * 128])
def test_an_id_is_echoed(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\nb", "é", "<script>", "--", '"'])
def test_what_is_no_id_is_not(given: str) -> None:
    assert request_id(given).startswith("req-")
    assert request_id(given) != request_id(given)


def test_what_libraries_log_is_a_line_too() -> None:
    out = io.StringIO()
    logger = logging.getLogger("qkv.test_log")
    handler = Lines(Log(out))
    logger.addHandler(handler)
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        logger.exception("went %s", "wrong\n")
    finally:
        logger.removeHandler(handler)
    found = json.loads(out.getvalue())
    assert (found["event"], found["message"], found["level"]) == ("library", "went wrong\n", "ERROR")
    assert found["error"] == "ValueError: bad\nthing"
    assert found["trace"][-1].endswith("in test_what_libraries_log_is_a_line_too")


def test_where_from() -> None:
    assert where_from(ValueError()) == []
    try:
        raise ValueError
    except ValueError as error:
        [frame] = where_from(error)
    assert frame.endswith("in test_where_from")
