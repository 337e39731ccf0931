"""Settings: every wrong value is an error that names its field, and the describing line says who said what."""

import dataclasses
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import ConfigError, InputError
from qkv.generate.settings import LONGEST_STOP, MOST_STOPS, Settings

WRONG = {
    "max_tokens": [0, -1, 1.5, True, "3", 2**63, math.nan],
    "max_length": [0, -1, True],
    "temperature": [-1, math.nan, math.inf, 1e308, 1e-40, True, False, "0.7", None],
    "top_k": [-5, 1.5, True, 2**63, None],
    "top_p": [0, -0.1, 2, math.nan, True, "1", None],
    "min_p": [-0.1, 1.1, math.nan, True],
    "repetition_penalty": [0, -1, math.inf, math.nan, 1e9, True],
    "presence_penalty": [-2.1, 3, math.inf, math.nan, True, None],
    "frequency_penalty": [-2.1, 3, math.inf, math.nan, "1", None],
    "logit_bias": [
        *(5, None, "ab", [5], {5: 101}, {5: math.nan}, {5: "1"}, {-1: 0}, {"5": 1}, {True: 1}, {1.5: 1}),
        *([(5, 1), (5, 2)], [(5, 1, 2)], dict.fromkeys(range(1025), 0.0)),
    ],
    "seed": [-1, 2**65, 0.5, True],
    "stop": ["", [""], [1], 5, ["x"] * (MOST_STOPS + 1), ["x" * (LONGEST_STOP + 1)], b"x", None],
    "stop_tokens": [5, [-1], [True], ["a"], [2**63], list(range(5000)), "ab"],
    "ignore_eos": [1, None, "yes"],
    "allow_long": [1, None],
    "logprobs": [0, -1, 1.5, "all", None, 2**63],
    "lookup": [0, -1, 1.5, "all", None, 2**20],
    "prefill_chunk": [0, -1, 1.5, True, None],
    "beams": [0, -1, 1.5, True, None, "4", 2**20],
    "length_penalty": [math.nan, math.inf, 100, "1", True, None],
    "early_stopping": ["always", "", 1, 0, None, []],
    "n_best": [0, -1, 2, True, None, 1.5],  # 2 of one beam
    "min_tokens": [-1, 1.5, True, None],
    "min_length": [-1, 1.5, True, None],
    "forced_first": [-1, True, "a", [1]],
    "forced_last": [-1, [-1], True, None, "a", ["a"], list(range(5000))],
    "suppress": [5, [-1], [True], ["a"], None, list(range(10**5))],
    "suppress_first": [5, [-1], [True], ["a"], None],
    "no_repeat_ngram": [-1, 1.5, True, None],
    "bad_words": [5, [5], [[]], [[-1]], [["a"]], None, "ab", [list(range(10**5))]],
    "renormalize": [1, None, "yes"],
    "start": [-1, True, "a", 1.5],
}
RIGHT = {
    "max_tokens": [1, None, 2**40],
    "temperature": [0, 0.0, 1e-6, 2],
    "top_k": [0, 1, 10**6],
    "top_p": [1e-9, 1, 1.0],
    "min_p": [0, 1],
    "presence_penalty": [-2, 0, 2.0],
    "frequency_penalty": [-2, 0, 2.0],
    "logit_bias": [{}, {0: -100, 5: 100.0}, [(5, 1)], dict.fromkeys(range(1024), 0.0)],
    "seed": [0, None, 2**63 - 1],
    "stop": ["x", ["x", "y"], ("x",), []],
    "stop_tokens": [[0, 1], ()],
    "logprobs": [True, False, 1, 20],
    "lookup": [True, False, 1, 1024],
    "beams": [1, 1024],
    "length_penalty": [-8, 0, 8.0],
    "early_stopping": [True, False, "never"],
    "forced_first": [0, None],
    "forced_last": [0, [0, 1], ()],
    "bad_words": [[[1]], (), [[1, 2], (3,)]],
    "start": [0, None],
}


def test_every_field_has_wrong_values_here() -> None:
    assert set(WRONG) == {f.name for f in dataclasses.fields(Settings)} - {"sources"}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_a_wrong_value_is_an_error_that_names_the_field(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        Settings(**{name: value})
    with pytest.raises(InputError, match=name):
        Settings().replace(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in RIGHT.items() for v in values])
def test_values_at_the_limits_are_taken(name: str, value: object) -> None:
    Settings(**{name: value})


@given(
    st.sampled_from(sorted(WRONG)), st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.binary()
)
def test_any_value_at_all_is_taken_or_an_input_error(name: str, value: object) -> None:
    with suppress(InputError):
        assert getattr(Settings(**{name: value}), name) in (value, (value,))
    with suppress(InputError, ConfigError):
        Settings.of({}, **{name: value})


def test_biases_are_held_as_pairs() -> None:
    wish = Settings(logit_bias={5: -100, 3: 1.5})
    assert wish.logit_bias == ((5, -100.0), (3, 1.5))
    assert wish == Settings(logit_bias=[(5, -100), (3, 1.5)])
    assert hash(wish) == hash(wish.replace())
    assert "logit_bias 5, -100, 3, 1.5 (given)" in wish.describe()


def test_an_unknown_argument_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"'max_new_tokens'; did you mean max_tokens\?"):
        Settings().replace(max_new_tokens=3)
    with pytest.raises(InputError, match="no argument 'sources'"):
        Settings().replace(sources={})
    with pytest.raises(InputError, match="did you mean max_tokens, max_length, temperature"):
        Settings().replace(zzz=3)


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}])
def test_truncating_a_greedy_answer_would_be_silent_and_is_an_error(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(change))} changes nothing while temperature is 0"):
        Settings().replace(**change)
    Settings().replace(temperature=0, **change)  # said outright, as clients of the OpenAI API do
    Settings().replace(temperature=1, **change)
    Settings.of({"do_sample": True}, **change)


@pytest.mark.parametrize("change", [{"length_penalty": 0.5}, {"early_stopping": True}, {"early_stopping": "never"}])
def test_what_only_a_beam_search_looks_at_is_an_error_without_one(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(change))} changes nothing while beams is 1"):
        Settings().replace(**change)
    Settings().replace(beams=4, **change)
    Settings().replace(beams=1, **change)  # said outright
    Settings.of({"num_beams": 4}, **change)


def test_a_search_does_not_draw() -> None:
    with pytest.raises(
        InputError, match=r"4 beams \(given\) and drawing at temperature 0.7 \(given\).*temperature=0 or"
    ):
        Settings(beams=4, temperature=0.7)
    with pytest.raises(InputError, match=r"drawing at temperature 0.6 \(generation_config.json\) at once is not done"):
        Settings.of({"do_sample": True, "temperature": 0.6}, beams=4)
    with pytest.raises(InputError, match="top_k changes nothing while temperature is 0"):
        Settings.of({"num_beams": 4}, top_k=5)
    both = {"do_sample": True, "num_beams": 4, "num_return_sequences": 4}
    with pytest.raises(ConfigError, match=r"generation_config\.json: a search of 4 beams"):
        Settings.of(both)
    assert Settings.of(both, temperature=0).beams == 4
    drawn = Settings.of(both, beams=1)
    assert (drawn.beams, drawn.n_best, drawn.temperature, drawn.top_k) == (1, 1, 1.0, 50)


def test_what_is_forced_may_not_be_forbidden() -> None:
    for change in ({"forced_first": 3}, {"forced_last": 3}, {"forced_last": [3, 4]}):
        with pytest.raises(InputError, match=f"{next(iter(change))} and suppress name the same tokens"):
            Settings(suppress=(3, 4), **change)
    Settings(suppress=(3,), forced_last=(3, 4))


def test_n_best_is_at_most_beams() -> None:
    with pytest.raises(InputError, match="n_best must be at most beams, which is 3, got 4"):
        Settings(beams=3, n_best=4)
    with pytest.raises(InputError, match="n_best must be at most beams, which is 1, got 2"):
        Settings.of({}, n_best=2)


def test_asking_for_new_tokens_takes_back_the_files_lengths() -> None:
    file = {"min_length": 56, "max_length": 142, "num_beams": 4}
    settings = Settings.of(file, max_tokens=20, min_tokens=3)
    assert (settings.max_length, settings.min_length, settings.min_tokens) == (None, 0, 3)
    assert Settings.of(file, min_tokens=3, min_length=4).min_length == 4


def test_arguments_win_over_the_file() -> None:
    file = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "eos_token_id": [1, 2]}
    settings = Settings.of(file, eos=(9,), temperature=0.2, max_tokens=10)
    assert (settings.temperature, settings.top_p, settings.max_tokens, settings.max_length) == (0.2, 0.9, 10, None)
    assert settings.stop_tokens == (1, 2)
    assert Settings.of(file, temperature=0).temperature == 0
    assert Settings.of({}, eos=(9,)).stop_tokens == (9,)
    assert Settings.of(file, stop_tokens=[]).stop_tokens == ()


def test_a_wrong_value_in_the_file_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p must be"):
        Settings.of({"do_sample": True, "top_p": 7})


def test_describe_says_what_is_in_force_and_who_said_so() -> None:
    assert Settings().describe() == "greedy (default); max_tokens 256 (default)"
    file = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "eos_token_id": 2}
    assert Settings.of(file).describe() == (
        "sampling: temperature 0.7, top_p 0.9 (generation_config.json); max_tokens 256 (default);"
        " stop_tokens 2 (generation_config.json)"
    )
    assert Settings.of({"do_sample": True}, seed=3, stop="\n", max_tokens=None).describe() == (
        "sampling: temperature 1, top_k 50 (transformers' default); as many tokens as the context holds (given);"
        " stop '\\n', seed 3 (given)"
    )
    assert Settings.of({"do_sample": False, "temperature": 0.7}, repetition_penalty=1.5).describe() == (
        "greedy (generation_config.json), repetition_penalty 1.5 (given); max_tokens 256 (default)"
    )
    assert Settings.of({"temperature": 0.7}, max_tokens=5).describe() == (
        "greedy (generation_config.json without do_sample); max_tokens 5 (given)"
    )
    assert Settings(temperature=0.5).describe() == "sampling: temperature 0.5 (given); max_tokens 256 (default)"


def test_what_says_the_ends_is_named() -> None:
    settings = Settings.of({"eos_token_id": 2}, origin="the GGUF file")
    assert "stop_tokens 2 (the GGUF file)" in settings.describe()
