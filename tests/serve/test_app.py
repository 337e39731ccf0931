"""OpenAI's own client, unchanged, over a real socket: what it sends is understood, what comes back it can read."""

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import qkv
from tests.serve.conftest import CONTEXT, Running

HELLO = [{"role": "user", "content": "One two three"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two small numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def brief(served: Running) -> dict[str, int]:
    """A bias against spaces, with which a model of random weights would fill an answer of JSON."""
    words = served.engine.model.tokenizer
    assert words is not None
    return {str(id): -100 for id in range(3, words.vocab_size) if not words.decode([id]).strip()}


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "vectors"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat(client: OpenAI, served: Running) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12, temperature=0)  # type: ignore[call-overload]
    model = served.engine.model
    alone = model.chat(HELLO, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == alone.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == alone.finish_reason
    assert answer.usage.prompt_tokens == len(alone.prompt_tokens)
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_is_the_same_answer(client: OpenAI) -> None:
    wish: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "seed": 3, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**wish)
    chunks = list(client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True}))
    for i in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == i]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == whole.choices[i].message.content
        assert [c.finish_reason for c in own if c.finish_reason] == [whole.choices[i].finish_reason]
        assert own[-1].finish_reason == whole.choices[i].finish_reason
        scored = [token for choice in own if choice.logprobs for token in choice.logprobs.content or []]
        assert [t.token for t in scored] == [t.token for t in whole.choices[i].logprobs.content]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert whole.choices[0].message.content != whole.choices[1].message.content
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_seed_repeats(client: OpenAI) -> None:
    wish: dict[str, Any] = {"model": "tiny", "prompt": "One", "max_tokens": 10, "n": 2}
    one, again, other = ([c.text for c in client.completions.create(**wish, seed=s).choices] for s in (1, 1, 2))
    assert one == again != other


def test_logprobs(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=3,  # type: ignore[arg-type]
    )
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert len(content) == answer.usage.completion_tokens  # type: ignore[union-attr]
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == token.logprob  # greedy: the likeliest
        assert token.bytes == token.top_logprobs[0].bytes
    assert "".join(bytes(t.bytes or b"").decode("utf-8", "replace") for t in content)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_must_be_called(client: OpenAI, brief: Any, choice: Any, stream: bool) -> None:
    wish: dict[str, Any] = {"model": "tiny", "messages": HELLO, "tools": [TOOL], "tool_choice": choice, "seed": 1}
    wish |= {"parallel_tool_calls": False, "max_tokens": 150, "logit_bias": brief}
    if not stream:
        answer = client.chat.completions.create(**wish).choices[0]
        (call,) = answer.message.tool_calls
        name, arguments, reason = call.function.name, call.function.arguments, answer.finish_reason
        assert answer.message.content is None
    else:
        deltas, reasons = [], []
        for chunk in client.chat.completions.create(**wish, stream=True):
            deltas += chunk.choices[0].delta.tool_calls or []
            reasons.append(chunk.choices[0].finish_reason)
        assert {delta.index for delta in deltas} == {0}
        assert [bool(delta.id) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
        name, arguments = deltas[0].function.name, "".join(delta.function.arguments or "" for delta in deltas)
        reason = reasons[-1]
    assert (name, reason) == ("add", "tool_calls")
    found = json.loads(arguments)
    assert found["a"] in (1, 2)
    assert isinstance(found["b"], bool)


def test_a_conversation_with_a_tool_goes_on(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": true}'}}
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL], max_tokens=4)  # type: ignore[list-item]
    messages.append(answer.choices[0].message)  # the client's own object, as its documentation has it
    messages.append({"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "now"}]})
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=4).usage


def test_json_schema(client: OpenAI, brief: Any) -> None:
    schema = TOOL["function"]["parameters"]
    form: Any = {"type": "json_schema", "json_schema": {"name": "pair", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        response_format=form,
        max_tokens=100,
        logit_bias=brief,
        seed=2,  # type: ignore[arg-type]
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"a", "b"}
    assert answer.choices[0].finish_reason == "stop"


class Pair(BaseModel):
    a: Literal[1, 2]
    b: bool


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # of the client, about its own answer
def test_what_the_client_parses_can_be_sent_back(client: OpenAI, brief: Any) -> None:
    wish: dict[str, Any] = {"model": "tiny", "max_tokens": 150, "logit_bias": brief, "seed": 2}
    answer = client.chat.completions.parse(messages=HELLO, response_format=Pair, **wish).choices[0].message  # type: ignore[arg-type]
    assert isinstance(answer.parsed, Pair)
    tool: Any = openai.pydantic_function_tool(Pair)
    wish |= {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    with client.chat.completions.stream(messages=[*HELLO, answer], **wish) as stream:  # type: ignore[list-item]
        called = stream.get_final_completion().choices[0]
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Pair)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    rest: Any = [*HELLO, answer, called.message, result]
    assert client.chat.completions.create(model="tiny", messages=rest, max_tokens=2).usage


def test_a_regular_expression(client: OpenAI) -> None:
    extra = {"structured_outputs": {"regex": "(yes|no)!"}}
    answer = client.completions.create(model="tiny", prompt="One", max_tokens=10, extra_body=extra)
    assert answer.choices[0].text in ("yes!", "no!")


def test_completions_with_legacy_logprobs(client: OpenAI, served: Running) -> None:
    prompts = ["One two", "The quick brown"]
    answer = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=3, temperature=0, logprobs=2, echo=True, stop=["zzz"]
    )
    words = served.engine.model.tokenizer
    assert words is not None
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        scores = choice.logprobs
        assert scores is not None
        assert choice.text.startswith(prompt)
        assert scores.token_logprobs is not None
        assert scores.token_logprobs[0] is None
        assert scores.top_logprobs[0] is None  # type: ignore[index]
        assert len(scores.tokens or []) == len(scores.token_logprobs) == len(words.encode(prompt)) + 3
        assert scores.text_offset is not None
        assert scores.text_offset[0] == 0
        assert sorted(scores.text_offset) == scores.text_offset
        for chosen, top in list(zip(scores.token_logprobs, scores.top_logprobs or [], strict=True))[1:]:
            assert chosen in top.values()
        greedy = list(zip(scores.token_logprobs, scores.top_logprobs or [], strict=True))[-3:]
        assert all(chosen == max(top.values()) for chosen, top in greedy)


def test_ids_and_several_answers(client: OpenAI, served: Running) -> None:
    words = served.engine.model.tokenizer
    assert words is not None
    wish: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    text = client.completions.create(prompt="One two", **wish)
    ids = client.completions.create(prompt=words.encode("One two"), **wish)
    several = client.completions.create(prompt=[words.encode("One two")] * 2, n=2, seed=1, **{**wish, "temperature": 1})
    assert text.choices[0].text == ids.choices[0].text
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[2].text  # each prompt by the same seed
    assert several.usage.prompt_tokens == 2 * text.usage.prompt_tokens  # type: ignore[union-attr]


def test_completions_stream(client: OpenAI) -> None:
    wish: dict[str, Any] = {"model": "tiny", "prompt": ["One", "Two"], "max_tokens": 6, "seed": 5, "echo": True}
    whole = client.completions.create(**wish, logprobs=1)
    chunks = list(client.completions.create(**wish, logprobs=1, stream=True))
    for i in range(2):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == i]
        assert "".join(choice.text for choice in own) == whole.choices[i].text
        tokens = [token for choice in own if choice.logprobs for token in choice.logprobs.tokens or []]
        assert tokens == whole.choices[i].logprobs.tokens  # type: ignore[union-attr]
        offsets = [at for choice in own if choice.logprobs for at in choice.logprobs.text_offset or []]
        assert offsets == whole.choices[i].logprobs.text_offset  # type: ignore[union-attr]
        assert own[-1].finish_reason == whole.choices[i].finish_reason


def test_embeddings(client: OpenAI, sentence_model: qkv.Model) -> None:
    texts = ["The quick brown fox", "query: fox"]
    expected = sentence_model.embed(texts)
    for form in ("float", "base64", openai.NOT_GIVEN):
        answer = client.embeddings.create(model="vectors", input=texts, encoding_format=form)  # type: ignore[arg-type]
        rows: list[Any] = [one.embedding for one in answer.data]
        if form == "base64":  # asked for by name the client gives it as it comes
            rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
        np.testing.assert_allclose(np.array(rows, np.float32), expected, atol=1e-6)
    short = client.embeddings.create(model="vectors", input=texts, dimensions=8)
    found = np.array([one.embedding for one in short.data])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found.shape == (2, 8)
    assert answer.usage.prompt_tokens > 6


def test_errors_are_the_client_s_own(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model is named"):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="x", temperature=9)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="One", max_tokens=CONTEXT)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="doesn't generate"):
        client.completions.create(model="vectors", prompt="x")
    with pytest.raises(openai.BadRequestError, match="makes no vector"):
        client.embeddings.create(model="tiny", input="x")


def test_async(url: str) -> None:
    async def run() -> list[str]:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "One"}], max_tokens=8, seed=i, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(i % 4) for i in range(12)))

    texts = asyncio.run(run())
    assert texts[:4] == texts[4:8] == texts[8:]


def test_ids_of_requests(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="x", max_tokens=1, extra_headers={"x-request-id": "my-id_1"}
    )
    assert raw.headers["x-request-id"] == "my-id_1"
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt="x", max_tokens=1, extra_headers={"x-request-id": "no\tgood"}
    )
    assert raw.headers["x-request-id"].startswith("req-")
