"""Messages and tools: what a client may send, and what it sends back of an answer."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage
from pydantic import ValidationError

from qkv.serve.schemas_chat import ChatRequest, Message

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(**more: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "x"}], **more})


def test_an_answer_can_be_sent_back() -> None:
    answer = ChatCompletionMessage.model_validate({"role": "assistant", "content": None, "tool_calls": [CALL]})
    assert Message.model_validate(answer.model_dump()).tool_calls
    text = ChatCompletionMessage(role="assistant", content="hi", annotations=[])
    assert Message.model_validate(text.model_dump()).content == "hi"


def test_so_can_one_that_the_client_has_parsed() -> None:
    """`client.chat.completions.parse` and `.stream` leave there what they read of it."""
    call = {**CALL, "function": {**CALL["function"], "parsed_arguments": {"a": 1}}}  # type: ignore[dict-item]
    answer = ParsedChatCompletionMessage[object].model_validate({"role": "assistant", "content": "{}", "parsed": {}})
    assert Message.model_validate(answer.model_dump(exclude_unset=True)).content == "{}"
    calls = ParsedChatCompletionMessage[object].model_validate({"role": "assistant", "tool_calls": [call]})
    assert "parsed_arguments" in str(calls.model_dump(exclude_unset=True))
    assert Message.model_validate(calls.model_dump(exclude_unset=True)).tool_calls


@pytest.mark.parametrize("kind", ["string", "array", ["object", "null"], None])
def test_parameters_are_an_object_s(kind: Any) -> None:
    with pytest.raises(ValidationError, match="type 'object'"):
        chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}])


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "audio": {"id": "a"}},
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}},
        {"role": "assistant", "content": "x", "annotations": [1]},
        {"role": "assistant"},
        {"role": "user", "content": "x", "tool_calls": [CALL]},
        {"role": "tool", "content": "x"},
        {"role": "user", "content": "x", "tool_call_id": "c"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    ],
)
def test_messages_that_are_none(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Message.model_validate(message)


def test_the_limit_by_either_name() -> None:
    assert (chat(max_tokens=3).limit, chat(max_completion_tokens=4).limit, chat().limit) == (3, 4, None)
    assert chat(max_tokens=3, max_completion_tokens=3).limit == 3


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"top_logprobs": 1}, "needs logprobs"),
        ({"tool_choice": "auto"}, "needs tools"),
        ({"tools": [TOOL, TOOL]}, "twice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "'g'"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "shape"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "give one"),
        ({"max_tokens": 0}, "at least 1"),
        ({"stream_options": {}}, "stream: true"),
    ],
)
def test_what_contradicts_itself(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        chat(**wish)


def test_what_does_not() -> None:
    chat(tools=[TOOL], tool_choice="none", response_format={"type": "json_object"})
    chat(tools=[TOOL], response_format={"type": "text"})
    chat(tools=[], tool_choice="none")
    chat(modalities=["text"], parallel_tool_calls=True)
