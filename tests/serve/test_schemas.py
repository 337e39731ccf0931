"""What requests have in common: strict types, no unknown field, harmless ones taken."""

from typing import Any

import pytest
from pydantic import ValidationError

from qkv.serve.schemas import Harmless, ResponseFormat, Sampling, Structured

HARMLESS = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
}


def test_harmless_fields_are_taken() -> None:
    assert set(HARMLESS) == set(Harmless.model_fields)
    assert Sampling.model_validate({"model": "m", **HARMLESS}).answers == 1


@pytest.mark.parametrize("field", ["functions", "suffix_", "chat_template", "echo", "logprobs", "best_of", "N"])
def test_unknown_fields_are_not(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Sampling.model_validate({"model": "m", field: 1})


def test_null_is_as_good_as_absent() -> None:
    fields = {name: None for name in Sampling.model_fields if name != "model"}
    assert Sampling.model_validate({"model": "m", **fields}) == Sampling.model_validate({"model": "m"})


@pytest.mark.parametrize(("n", "count"), [(None, 1), (1, 1), (5, 5)])
def test_answers(n: int | None, count: int) -> None:
    assert Sampling(model="m", n=n).answers == count


def test_a_whole_number_is_a_number() -> None:
    assert (
        Sampling.model_validate({"model": "m", "temperature": 1, "top_p": 1, "presence_penalty": -2}).temperature == 1
    )


@pytest.mark.parametrize(
    "form", [{"type": "json_schema"}, {"type": "text", "json_schema": {"name": "x"}}, {"type": "yaml"}, {}]
)
def test_response_formats_that_are_none(form: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResponseFormat.model_validate(form)


def test_a_schema_is_by_its_own_name() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    found = ResponseFormat.model_validate(form).json_schema
    assert found is not None
    assert found.schema_ == {"type": "object"}


def test_one_structure() -> None:
    assert Structured.model_validate({"json": {}}).json_ == {}
    for wrong in ({}, {"json": {}, "regex": "a"}, {"regex": ""}, {"json_object": False}):
        with pytest.raises(ValidationError):
            Structured.model_validate(wrong)
