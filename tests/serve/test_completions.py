"""Completions: row S26 (echo and log-probabilities, held to the model itself), and encoder–decoders."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch

from tests.serve.conftest import Running, error, post
from tests.tiny import text_to_text

PROMPT = "The quick brown fox"


def scores(served: Running, ids: list[int]) -> list[list[float]]:
    """What the model itself says of each token behind the first: log-probabilities of the whole vocabulary."""
    with torch.inference_mode():
        logits = served.engine.model([ids])[0]
    found: list[list[float]] = logits.float().log_softmax(-1)[:-1].tolist()
    return found


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("top", [0, 1, 3])
def test_a_prompt_s_own_scores(served: Running, url: str, limit: int, top: int) -> None:
    words = served.engine.model.tokenizer
    assert words is not None
    ids = words.encode(PROMPT)
    body = {"model": "tiny", "prompt": [ids], "max_tokens": limit, "temperature": 0, "logprobs": top, "echo": True}
    found = post(url, "/v1/completions", body).json()
    (choice,) = found["choices"]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(ids) + limit
    assert told["token_logprobs"][0] is None
    expected = scores(served, ids)
    for place, (id, row) in enumerate(zip(ids[1:], expected, strict=True), 1):
        assert told["token_logprobs"][place] == pytest.approx(row[id], abs=1e-4)
        likeliest = max(told["top_logprobs"][place].values())
        assert likeliest == pytest.approx(max(row) if top else row[id], abs=1e-4)
        assert (told["token_logprobs"][place] == likeliest) == (not top or row[id] == max(row))  # lm-eval's is_greedy
    assert choice["text"].startswith(PROMPT)
    assert found["usage"]["completion_tokens"] == limit
    assert [PROMPT[at:][:1] for at in told["text_offset"][: len(ids)]] == [words.decode([id])[0] for id in ids]
    if not limit:
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")


def test_echo_without_scores(url: str) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "seed": 1}
    plain = post(url, "/v1/completions", body).json()["choices"][0]
    echoed = post(url, "/v1/completions", {**body, "echo": True}).json()["choices"][0]
    assert echoed["text"] == PROMPT + plain["text"]
    assert echoed["logprobs"] is None
    scored = post(url, "/v1/completions", {**body, "max_tokens": 0, "echo": True}).json()
    assert scored["choices"][0]["text"] == PROMPT
    assert scored["usage"]["completion_tokens"] == 0


def test_sixteen_tokens_where_nobody_says(url: str) -> None:
    found = post(url, "/v1/completions", {"model": "tiny", "prompt": "One", "ignore_eos": True}).json()
    assert found["usage"]["completion_tokens"] == 16
    assert found["choices"][0]["finish_reason"] == "length"


def test_a_stop_text_is_not_part_of_it(url: str) -> None:
    body = {"model": "tiny", "prompt": "One", "max_tokens": 30, "temperature": 0, "ignore_eos": True}
    text = post(url, "/v1/completions", body).json()["choices"][0]["text"]
    stop = next(c for c in text[5:] if c != "\ufffd" and c.strip())
    found = post(url, "/v1/completions", {**body, "stop": [stop]}).json()["choices"][0]
    assert (found["text"], found["finish_reason"]) == (text[: text.index(stop)], "stop")
    lines = httpx.post(f"{url}/v1/completions", json={**body, "stop": stop, "stream": True}, timeout=30).text
    assert lines.endswith("data: [DONE]\n\n")
    assert stop not in found["text"]


def test_a_named_stop_token_ends_it_where_eos_is_ignored(served: Running, url: str) -> None:
    body = {"model": "tiny", "prompt": "One", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    tokens = served.engine.model.generate("One", max_tokens=8, temperature=0, ignore_eos=True).tokens
    place = next(i for i, token in enumerate(tokens) if i and token not in tokens[:i])
    found = post(url, "/v1/completions", {**body, "stop_token_ids": [tokens[place]]}).json()
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == place + 1


def test_several_prompts_fail_together(url: str) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": [[5, 6], [5] * 600], "max_tokens": 2}
    assert error(post(url, "/v1/completions", body), 400)["code"] == "context_length_exceeded"


@pytest.fixture(scope="module")
def translator() -> Iterator[Running]:
    running = Running({"t5": text_to_text()})
    yield running
    running.close()


def test_an_encoder_decoder(translator: Running) -> None:
    model = translator.engine.model
    alone = model.generate("w3 w4 w5", max_tokens=6, temperature=0, beams=1)
    body = {"model": "t5", "prompt": "w3 w4 w5", "max_tokens": 6, "temperature": 0}
    found = post(translator.url, "/v1/completions", body).json()
    assert found["choices"][0]["text"] == alone.text
    assert found["usage"]["prompt_tokens"] == len(alone.prompt_tokens)
    odd = "w3   w4 \u00e9\u4e2d"  # its tokens don't say it all
    echoed = post(translator.url, "/v1/completions", {**body, "prompt": [odd], "echo": True}).json()["choices"][0]
    assert echoed["text"].startswith(odd)
    refused = post(translator.url, "/v1/completions", {**body, "echo": True, "logprobs": 1})
    assert "encoder" in error(refused, 400)["message"]
    turns = {"model": "t5", "messages": [{"role": "user", "content": "w3"}]}
    assert "no chat template" in error(post(translator.url, "/v1/chat/completions", turns), 400)["message"]
