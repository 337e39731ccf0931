"""Every limit of a request is checked, and the error names the field."""

import dataclasses
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.generate.settings import Settings
from qkv.serve.ask import Ask, ContextExceeded, Grammar, Limits, answer_seed

LIMITS = Limits(context=100, vocab=50)
PAIR = Limits(context=20, vocab=50, source=30)


def ask(**fields: Any) -> Ask:
    return Ask(**{"id": "a", "prompt": (1, 2, 3), "settings": Settings(), **fields})


WRONG: list[tuple[str, dict[str, Any]]] = [
    *(("n", {"n": n}) for n in (0, -1, 9, 10**6, 2**63, 1.5, True, "3", None)),
    *(("echo_logprobs", {"echo_logprobs": k}) for k in (-1, 21, 1.5, True, "1")),
    *(("id", {"id": id}) for id in ("", "x" * 257, 5, None)),
    *(("salt", {"salt": salt}) for salt in ("x" * 257, b"x", None)),
    *(("tenant", {"tenant": tenant}) for tenant in ("x" * 257, 1)),
    ("prompt is empty", {"prompt": ()}),
    *(("prompt: a token id", {"prompt": (1, bad)}) for bad in (-1, 50, 2**70, 1.0, True, "1", None)),
    ("grammar.kind", {"grammar": Grammar("lark", "start: x")}),  # type: ignore[arg-type]
    ("grammar: regex may have 65536 bytes", {"grammar": Grammar("regex", "a" * 65537)}),
    ("grammar: regex may have 65536 bytes", {"grammar": Grammar("regex", "é" * 40000)}),
    ("grammar: regex needs a source", {"grammar": Grammar("regex")}),
    ("grammar: json_object needs no source", {"grammar": Grammar("json_object", "{}")}),
    ("grammar.source", {"grammar": Grammar("regex", 5)}),  # type: ignore[arg-type]
]
WRONG_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("stop may hold 4", {"stop": list("abcde")}),
    ("stop: a text", {"stop": ["x" * 257]}),
    ("stop_tokens may hold 128", {"stop_tokens": list(range(129))}),
    ("suppress may hold 1024", {"suppress": list(range(1025))}),
    ("bad_words may hold 1024", {"bad_words": [[1]] * 1025}),
    ("bad_words may hold 1024 ids", {"bad_words": [list(range(1025))]}),
    ("logprobs must be at most 20", {"logprobs": 21}),
    ("beams", {"beams": 2}),
    ("lookup", {"lookup": 3}),
    ("allow_long", {"allow_long": True}),
    ("prefill_chunk", {"prefill_chunk": 4}),
]


@pytest.mark.parametrize(("message", "fields"), WRONG)
def test_what_is_wrong_is_named(message: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        ask(**fields).check(LIMITS)


@pytest.mark.parametrize(("message", "changes"), WRONG_SETTINGS)
def test_settings_have_limits_of_their_own(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        ask(settings=Settings().replace(**changes)).check(LIMITS)


def test_a_models_own_settings_may_be_longer() -> None:
    """A generation_config.json is the operator's: it may suppress thousands of tokens, as Whisper's does."""
    wish = Settings.of({"suppress_tokens": list(range(2000)), "eos_token_id": list(range(200))})
    ask(settings=wish).check(LIMITS)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 8},
        {"n": 0, "echo_logprobs": 0},
        {"n": 0, "echo_logprobs": 20, "prompt": (1,) * 100},
        {"prompt": (0, 49) * 49 + (1,), "settings": Settings().replace(max_tokens=1)},
        {"prompt": (1,) * 99},
        {"settings": Settings.of({"max_new_tokens": 500})},
        {"settings": Settings().replace(max_tokens=None)},
        {"settings": Settings().replace(stop=list("abcd"), logprobs=20)},
        {"grammar": Grammar("json_object")},
        {"salt": "\ud800"},
    ],
)
def test_what_is_right_passes(fields: dict[str, Any]) -> None:
    ask(**fields).check(LIMITS)


@pytest.mark.parametrize(("prompt", "max_tokens", "n"), [(100, None, 1), (10**6, 5, 1), (90, 11, 1), (101, None, 0)])
def test_beyond_the_context(prompt: int, max_tokens: int | None, n: int) -> None:
    wish = Settings().replace(max_tokens=max_tokens)
    with pytest.raises(ContextExceeded, match="a context of 100") as error:
        ask(prompt=(1,) * prompt, settings=wish, n=n, echo_logprobs=None if n else 0).check(LIMITS)
    assert (error.value.prompt, error.value.context) == (prompt, 100)
    assert error.value.asked == (11 if prompt == 90 else None)


def test_an_encoders_prompt_has_a_limit_of_its_own() -> None:
    ask(prompt=(1,) * 30, settings=Settings().replace(max_tokens=19)).check(PAIR)
    with pytest.raises(ContextExceeded) as error:
        ask(prompt=(1,) * 31).check(PAIR)
    assert error.value.context == 30
    with pytest.raises(ContextExceeded):
        ask(settings=Settings().replace(max_tokens=20)).check(PAIR)
    with pytest.raises(InputError, match="echo_logprobs"):
        ask(echo_logprobs=0).check(PAIR)


@given(st.fixed_dictionaries({}, optional={
    name: st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.tuples(st.integers())
    for name in ("id", "prompt", "n", "salt", "tenant", "echo_logprobs")
}))  # fmt: skip
def test_anything_at_all_passes_or_is_an_input_error(fields: dict[str, Any]) -> None:
    if not isinstance(fields.get("prompt", ()), tuple | str):
        del fields["prompt"]
    with suppress(InputError):
        ask(**fields).check(LIMITS)


def test_an_ask_can_not_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ask().n = 3  # type: ignore[misc]


@given(st.integers(0, 2**63 - 1), st.integers(1, 50))
def test_answers_draw_with_seeds_of_their_own(seed: int, index: int) -> None:
    derived = answer_seed(seed, index)
    assert 0 <= derived < 2**63
    assert derived == answer_seed(seed, index)
    assert len({answer_seed(seed, i) for i in (0, index, index + 1)}) == 3
    assert answer_seed(seed, 0) == seed
