"""Chats: the prompt is the model's own template's; calls in an answer, whole and in chunks, are the same."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from qkv.serve.ask import Ask
from qkv.serve.engine import Engine
from qkv.serve.events import Began, Ended, Event, Piece, Scored, Times, Usage
from tests.serve.conftest import Running, error, post

HELLO = [{"role": "user", "content": "One two"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CHAT = {"model": "tiny", "messages": HELLO, "max_tokens": 5}


def says(monkeypatch: pytest.MonkeyPatch, *pieces: str, reason: Any = "stop") -> list[Ask]:
    """Have the engine answer with these pieces; the asks that it gets."""
    asks = []

    def submit(self: Engine, ask: Ask, deliver: Callable[[Event], None]) -> None:
        asks.append(ask)
        deliver(Began(len(ask.prompt), 0))
        for piece in pieces:
            deliver(Piece(0, piece, (Scored(5, -1.0),)))
        deliver(Ended(0, reason, Usage(len(ask.prompt), 0, len(pieces)), Times(0, 0, 0, 0), None))

    monkeypatch.setattr(Engine, "submit", submit)
    return asks


def streamed(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    text = httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, timeout=30).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


ANSWERS = [
    (["Sure. <tool", '_call>{"name": "add", "argu', 'ments": {"a": 1}}</tool_call>', "\n"], "Sure.", 1),
    (['{"name": "add", ', '"parameters": {"a": 1}}'], None, 1),
    (['<tool_call>{"name": "add"}</tool_call><tool_call>{"name": "add"}</tool_call>'], None, 2),
    (["no calls", " here"], "no calls here", 0),
    (['<tool_call>{"name": "rm"}</tool_call>'], '<tool_call>{"name": "rm"}</tool_call>', 0),
]


@pytest.mark.parametrize(("pieces", "text", "count"), ANSWERS)
def test_calls_whole_and_streamed(
    served: Running, monkeypatch: pytest.MonkeyPatch, pieces: list[str], text: str | None, count: int
) -> None:
    says(monkeypatch, *pieces)
    body = {**CHAT, "tools": TOOLS}
    (choice,) = post(served.url, "/v1/chat/completions", body).json()["choices"]
    message = choice["message"]
    assert message["content"] == text
    assert len(message.get("tool_calls", [])) == count
    assert choice["finish_reason"] == ("tool_calls" if count else "stop")
    calls: dict[int, list[str]] = {}
    content = ""
    chunks = streamed(served.url, body)
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        content += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] not in calls
                calls[call["index"]] = [call["id"], call["function"]["name"], ""]
            calls[call["index"]][2] += call["function"]["arguments"]
    assert (content or None) == (text or None)
    assert [*calls] == [*range(count)]
    assert len({id for id, _, _ in calls.values()}) == count
    whole = [[call["function"]["name"], call["function"]["arguments"]] for call in message.get("tool_calls", [])]
    assert [call[1:] for call in calls.values()] == whole
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"]


def test_an_answer_that_is_cut_in_a_call_was_cut(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, '<tool_call>{"name": "add", "arguments": {}}</tool_call>', reason="length")
    found = post(served.url, "/v1/chat/completions", {**CHAT, "tools": TOOLS}).json()
    assert found["choices"][0]["finish_reason"] == "length"


def test_tool_choice_none_hides_the_tools(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = says(monkeypatch, '{"name": "add"}')
    found = post(served.url, "/v1/chat/completions", {**CHAT, "tools": TOOLS, "tool_choice": "none"}).json()
    assert found["choices"][0]["message"]["content"] == '{"name": "add"}'
    post(served.url, "/v1/chat/completions", CHAT)
    post(served.url, "/v1/chat/completions", {**CHAT, "tools": TOOLS})
    assert asks[0].prompt == asks[1].prompt != asks[2].prompt


def test_messages_as_the_template_gets_them(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = says(monkeypatch, "x")
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ]
    assert post(served.url, "/v1/chat/completions", {**CHAT, "messages": turns}).status_code == 200
    words = served.engine.model.tokenizer
    assert words is not None
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "3"},
    ]
    assert list(asks[0].prompt) == words.chat(plain)


def test_what_becomes_of_the_wishes(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = says(monkeypatch, "x")
    post(served.url, "/v1/chat/completions", {"model": "tiny", "messages": HELLO})
    post(served.url, "/v1/chat/completions", {**CHAT, "temperature": 0, "top_p": 0.5, "top_k": -1, "stop": "z"})
    post(served.url, "/v1/chat/completions", {**CHAT, "stop_token_ids": [7], "logprobs": True, "logit_bias": {"5": -1}})
    post(
        served.url, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 3, "n": 1, "seed": 4, "top_k": 5}
    )
    plain, greedy, stops, scored = (ask.settings for ask in asks)
    assert (plain.temperature, plain.max_tokens, plain.logprobs, plain.seed) == (1.0, None, False, None)
    assert (greedy.temperature, greedy.top_p, greedy.top_k, greedy.stop, greedy.max_tokens) == (0.0, 1.0, 0, ("z",), 5)
    assert stops.stop_tokens == (*plain.stop_tokens, 7)
    assert (stops.logprobs, dict(stops.logit_bias)) == (True, {5: -1.0})
    assert (scored.logprobs, scored.seed, scored.top_k) == (3, 4, 5)
    assert len({ask.id for ask in asks}) == 4
    assert len({ask.salt for ask in asks}) == 1


def test_a_template_that_has_no_place_for_tools(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    words = served.engine.model.tokenizer
    assert words is not None
    monkeypatch.setattr(words, "chat_templates", {"default": "{{ messages[0].content }}"})
    assert "no place" in error(post(served.url, "/v1/chat/completions", {**CHAT, "tools": TOOLS}), 400)["message"]
    assert post(served.url, "/v1/chat/completions", CHAT).status_code == 200
    monkeypatch.setattr(words, "chat_templates", {"default": "{{ raise_exception('not so') }}"})
    assert "not so" in error(post(served.url, "/v1/chat/completions", CHAT), 400)["message"]
    monkeypatch.setattr(words, "chat_templates", {})
    assert "no chat template" in error(post(served.url, "/v1/chat/completions", CHAT), 400)["message"]


def test_after_all_chats(url: str) -> None:
    """`url` looks at the server when it is done."""
