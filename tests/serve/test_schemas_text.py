"""Prompts, inputs and documents: one or several, texts or ids, never a mixture."""

from typing import Any

import pytest
from pydantic import ValidationError

from qkv.serve.schemas_text import (
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    TokenizeRequest,
)


@pytest.mark.parametrize("given", ["a", [1, 2], ["a", "b"], [[1], [2, 3]]])
def test_the_four_kinds(given: Any) -> None:
    assert CompletionRequest(model="m", prompt=given).prompt == given
    assert EmbeddingRequest(model="m", input=given).input == given


@pytest.mark.parametrize("given", ["", [], [[]], ["a", 1], [1, "a"], [[1], "a"], [[1], [True]], None, 1, [None]])
def test_what_is_none_of_them(given: Any) -> None:
    for model, field in ((CompletionRequest, "prompt"), (EmbeddingRequest, "input")):
        with pytest.raises(ValidationError):
            model.model_validate({"model": "m", field: given})


def test_best_of_is_n_or_nothing() -> None:
    assert CompletionRequest(model="m", prompt="a", best_of=1).answers == 1
    assert CompletionRequest(model="m", prompt="a", best_of=3, n=3).answers == 3
    with pytest.raises(ValidationError, match="best_of"):
        CompletionRequest(model="m", prompt="a", best_of=3)


def test_no_tokens_only_with_echo() -> None:
    assert CompletionRequest(model="m", prompt="a", max_tokens=0, echo=True)
    with pytest.raises(ValidationError, match="echo"):
        CompletionRequest(model="m", prompt="a", max_tokens=0)
    with pytest.raises(ValidationError, match="n must be 1"):
        CompletionRequest(model="m", prompt="a", max_tokens=0, echo=True, n=2)


def test_documents() -> None:
    assert (
        len(RerankRequest.model_validate({"model": "m", "query": "q", "documents": ["a", {"text": "b"}]}).documents)
        == 2
    )
    for wrong in ([], [""], [{"text": "b", "title": "x"}], [1], "a"):
        with pytest.raises(ValidationError):
            RerankRequest.model_validate({"model": "m", "query": "q", "documents": wrong})


def test_tokenize_takes_one_of_two() -> None:
    turns = [{"role": "user", "content": "x"}]
    assert TokenizeRequest.model_validate({"prompt": ""}).prompt == ""
    assert TokenizeRequest.model_validate({"messages": turns}).messages
    for wrong in ({}, {"prompt": "a", "messages": turns}, {"prompt": "a", "add_generation_prompt": True}):
        with pytest.raises(ValidationError):
            TokenizeRequest.model_validate(wrong)
    with pytest.raises(ValidationError, match="chat template"):
        TokenizeRequest.model_validate({"messages": turns, "add_special_tokens": True})


def test_detokenize_takes_none_too() -> None:
    assert DetokenizeRequest(tokens=[]).tokens == []
