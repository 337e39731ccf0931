"""The tokenizer's routes give what the tokenizer gives."""

from typing import Any

import httpx
import pytest

from tests.serve.conftest import CONTEXT, Running, error, post

TEXT = "The quick 日本 fox\n"


def test_there_and_back(served: Running, url: str) -> None:
    words = served.engine.model.tokenizer
    assert words is not None
    found = post(url, "/tokenize", {"model": "tiny", "prompt": TEXT, "return_token_strs": True}).json()
    assert found["tokens"] == words.encode(TEXT)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), CONTEXT)
    assert len(found["token_strs"]) == found["count"]
    back = post(url, "/detokenize", {"model": "tiny", "tokens": found["tokens"]}).json()
    assert back == {"prompt": TEXT}
    plain = post(url, "/tokenize", {"model": "vectors", "prompt": "x", "add_special_tokens": False}).json()
    assert plain["count"] == post(url, "/tokenize", {"model": "vectors", "prompt": "x"}).json()["count"] - 2
    assert plain["token_strs"] is None


def test_messages(served: Running, url: str) -> None:
    words = served.engine.model.tokenizer
    assert words is not None
    turns: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]
    found = post(url, "/tokenize", {"model": "tiny", "messages": turns}).json()
    assert found["tokens"] == words.chat(turns)
    ended = post(url, "/tokenize", {"model": "tiny", "messages": turns, "add_generation_prompt": False}).json()
    assert ended["tokens"] == words.chat(turns, add_generation_prompt=False)


def test_a_name_is_needed_where_there_are_several(url: str) -> None:
    assert "name one" in error(post(url, "/tokenize", {"prompt": "x"}), 404)["message"]


@pytest.mark.parametrize("tokens", [[10**6], [-1], "x", [1.0], [2**70]])
def test_ids_that_are_none(url: str, tokens: Any) -> None:
    error(post(url, "/detokenize", {"model": "tiny", "tokens": tokens}), 400)


def test_models(url: str) -> None:
    found = httpx.get(f"{url}/v1/models").json()
    about = {one["id"]: one for one in found["data"]}
    assert about["tiny"]["generates"]
    assert about["tiny"]["max_model_len"] == CONTEXT
    assert (about["vectors"]["generates"], about["vectors"]["head"]) == (False, "Pool")
    assert httpx.get(f"{url}/v1/models/tiny").json() == about["tiny"]
    assert error(httpx.get(f"{url}/v1/models/a/b"), 404)["code"] == "model_not_found"
    assert error(httpx.get(f"{url}/nothing"), 404)["code"] is None
    assert error(httpx.get(f"{url}/v1/completions"), 405)
