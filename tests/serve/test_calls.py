"""Calls in a text: the same however it is cut, linear, by JSON alone."""

import ast
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.serve import calls
from qkv.serve.calls import Arguments, Auto, Begin, Named, Parser, Plain, Required

NAMES = ["add", "say"]
ADD = '{"name": "add", "arguments": {"a": 1, "b": [2, "}"]}}'
SAY = '{"name": "say", "arguments": {"text": "\\"</tool_call>"}}'


def read(parser: Parser, *pieces: str) -> tuple[str, list[tuple[str, str]]]:
    """(the text, the calls) of an answer that comes in pieces."""
    text, found = "", {}
    for one in [one for piece in pieces for one in parser.feed(piece)] + list(parser.finish()):
        if isinstance(one, str):
            text += one
        elif isinstance(one, Begin):
            assert one.index == len(found)
            assert one.id.startswith("call_")
            found[one.index] = [one.name, ""]
        else:
            assert isinstance(one, Arguments)
            found[one.index][1] += one.text
    return text, [(name, arguments) for name, arguments in found.values()]


def parsed(found: list[tuple[str, str]]) -> list[tuple[str, object]]:
    return [(name, json.loads(arguments)) for name, arguments in found]


ANSWERS = [
    ("Hello.", "Hello.", []),
    ("", "", []),
    (f"<tool_call>\n{ADD}\n</tool_call>", "", ["add"]),
    (f"I will. <tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>", "I will.", ["add", "add"]),
    (f"<tool_call>{ADD}", "", ["add"]),  # no closing tag
    (ADD, "", ["add"]),
    (f" [{ADD}, {ADD}] ", "", ["add", "add"]),
    ('{"name": "add", "parameters": {"a": 1}}', "", ["add"]),
    ('<tool_call>{"name": "say", "arguments": "{}"}</tool_call>', "", ["say"]),
    ('<tool_call>[{"name": "say"}]</tool_call> done', " done", ["say"]),
]
TEXTS = [
    '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',  # no such tool
    "<tool_call>add(1, 2)</tool_call>",
    "<tool_call>__import__('os').system('touch x')</tool_call>",
    '{"name": "add", "arguments": [1]}',
    '{"name": "add", "arguments": "no JSON"}',
    '{"answer": 42}',
    "[1, 2, 3]",
    "a <tool_ call> b < c <tool_cal",
    "<tool_call>" + "[" * 5000,
]


@pytest.mark.parametrize(("answer", "text", "names"), ANSWERS)
def test_calls_and_the_text_around_them(answer: str, text: str, names: list[str]) -> None:
    found = read(Auto(NAMES), answer)
    assert found[0] == text
    assert [name for name, _ in found[1]] == names


@pytest.mark.parametrize("answer", TEXTS)
def test_what_only_looks_like_a_call_is_text(answer: str) -> None:
    assert read(Auto(NAMES), answer) == (answer, [])


@given(st.sampled_from([a for a, _, _ in ANSWERS] + TEXTS[:-1]), st.lists(st.integers(0, 200), max_size=8))
def test_however_it_is_cut(answer: str, cuts: list[int]) -> None:
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    pieces = [answer[a:b] for a, b in pairwise(places)]
    assert read(Auto(NAMES), *pieces) == read(Auto(NAMES), answer) == read(Auto(NAMES), *answer)


@given(st.text(alphabet='<tool_call>/{}[]" \\nameadd:,', max_size=60))
def test_any_text_is_found_again_or_is_a_call(answer: str) -> None:
    text, found = read(Auto(NAMES), *answer)
    assert found or text.split() == answer.split()


@pytest.mark.parametrize("unit", ["<tool_call>{}</tool_call>", "<tool_call", "x ", "<tool_call>" + "x" * 50, " "])
def test_time_is_linear(unit: str) -> None:
    def seconds(times: int) -> float:
        best = float("inf")
        for _ in range(3):
            parser, start = Auto(NAMES), time.perf_counter()
            for _ in range(times):
                list(parser.feed(unit))
            list(parser.finish())
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(20_000) < 40 * max(seconds(2_000), 2e-3)


def test_required_calls_stream_their_arguments() -> None:
    answer = f"[ {ADD},\n {SAY}]"
    text, found = read(Required(), *answer)
    assert text == ""
    assert parsed(found) == [("add", {"a": 1, "b": [2, "}"]}), ("say", {"text": '"</tool_call>'})]
    assert read(Required(), answer) == (text, found)
    parser = Required()
    assert list(parser.feed('[{"name": "add", "arguments": ')) == []
    begin, arguments = parser.feed('{"a": ')
    assert isinstance(begin, Begin)
    assert isinstance(arguments, Arguments)
    assert arguments.text == '{"a": '
    assert [one.text for one in parser.feed("12") if isinstance(one, Arguments)] == ["12"]


def test_a_named_call_is_its_arguments() -> None:
    assert read(Named("add"), '{"a"', ": 1}") == ("", [("add", '{"a": 1}')])


def test_no_more_calls_than_are_wanted() -> None:
    text, found = read(Auto(NAMES, 1), f"So: <tool_call>{ADD}</tool_call><tool_call>{ADD}</tool_call>")
    assert (text, [name for name, _ in found]) == ("So:", ["add"])
    assert len(read(Auto(NAMES, 1), f"[{ADD}, {ADD}]")[1]) == 1
    assert len(read(Auto(NAMES), f"[{ADD}, {ADD}]")[1]) == 2


def test_without_tools_text_is_text() -> None:
    assert read(Plain(), ADD, "<tool_call>") == (ADD + "<tool_call>", [])


def test_nothing_that_a_model_writes_is_run() -> None:
    """In all of the server: no eval, exec, compile or literal_eval of anything."""
    for path in Path(calls.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "compile", "__import__", "pickle.loads"), path.name
                assert not name.endswith("literal_eval"), path.name
