"""generation_config.json: what transformers would do with it is done, or is an error."""

from typing import Any

import pytest
from transformers import GenerationConfig

from qkv.errors import ConfigError
from qkv.generate.generation_config import HONOURED, NO_EFFECT, REFUSED, read_generation_config
from qkv.generate.settings import Settings

LLAMA_2 = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096, "pad_token_id": 0}
QWEN_3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [151645, 151643]}
GEMMA_3 = {"cache_implementation": "hybrid", "do_sample": True, "eos_token_id": [1, 106], "top_k": 64, "top_p": 0.95}
GPT_2 = {
    "_from_model_config": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "transformers_version": "4.26.0.dev0",
}

MARIAN = {
    "bad_words_ids": [[58100]],
    "bos_token_id": 0,
    "decoder_start_token_id": 58100,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "max_length": 512,
    "num_beams": 6,
    "pad_token_id": 58100,
    "renormalize_logits": True,
}
BART_CNN = {
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
}
AS_MARIAN = {
    "beams": 6,
    "max_tokens": None,
    "max_length": 512,
    "stop_tokens": (0,),
    "bad_words": ((58100,),),
    "start": 58100,
    "forced_last": (0,),
    "renormalize": True,
}
AS_BART_CNN = {
    "beams": 4,
    "max_tokens": None,
    "max_length": 142,
    "min_length": 56,
    "length_penalty": 2.0,
    "early_stopping": True,
    "no_repeat_ngram": 3,
    "start": 2,
    "forced_first": 0,
    "forced_last": (2,),
    "stop_tokens": (2,),
}
THREE = {"beams": 3, "n_best": 2, "early_stopping": "never"}

TABLE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    (LLAMA_2, {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "max_tokens": None, "max_length": 4096}),
    (QWEN_3, {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "stop_tokens": (151645, 151643)}),
    (GEMMA_3, {"temperature": 1.0, "top_p": 0.95, "top_k": 64, "stop_tokens": (1, 106)}),
    (GPT_2, {"stop_tokens": (50256,)}),
    ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}),
    ({"temperature": 0.6}, {"temperature": 0.0}),
    ({"do_sample": True, "top_k": 0}, {"temperature": 1.0, "top_k": 0}),
    ({"do_sample": True, "min_p": 0.1, "top_k": 0}, {"temperature": 1.0, "min_p": 0.1}),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ({"max_new_tokens": 5, "max_length": 9}, {"max_tokens": 5}),
    ({"stop_strings": "###"}, {"stop": ("###",)}),
    ({"stop_strings": ["a", "b"], "top_p": None}, {"stop": ("a", "b")}),
    (MARIAN, AS_MARIAN),
    (BART_CNN, AS_BART_CNN),
    ({"suppress_tokens": [1, 2], "begin_suppress_tokens": [3]}, {"suppress": (1, 2), "suppress_first": (3,)}),
    ({"num_beams": 3, "num_return_sequences": 2, "early_stopping": "never"}, THREE),
    ({"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "min_length": 0}, {}),
    ({"min_length": 9, "min_new_tokens": 5}, {"min_tokens": 5}),
    ({"forced_eos_token_id": [1, 2]}, {"forced_last": (1, 2)}),
    ({"bad_words_ids": [], "suppress_tokens": []}, {}),
]


@pytest.mark.parametrize(("file", "expected"), TABLE)
def test_what_a_file_sets(file: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = Settings.of(file)
    assert settings == Settings(**expected)
    assert {name for name, source in settings.sources.items() if source != "default"} >= set(expected)


def test_the_tables_hold_every_key_that_transformers_knows() -> None:
    known = set(vars(GenerationConfig())) | {"_commit_hash"}
    tables = [set(HONOURED), set(REFUSED), set(NO_EFFECT)]
    assert set.union(*tables) == known
    assert sum(map(len, tables)) == len(known)


def test_top_k_and_temperature_default_as_in_transformers() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    said, _ = read_generation_config({"do_sample": True})
    assert said == {name: defaults[name] for name in ("temperature", "top_k")}
    for name, neutral in REFUSED.items():
        assert (defaults.get(name) or 0) == (neutral or 0) or name == "guidance_scale"


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_key_that_changes_the_answer_is_refused_unless_left_out(key: str) -> None:
    value = {"sequence_bias": [[[1], 2.0]], "is_assistant": True, "token_healing": True}.get(key, 4)
    with pytest.raises(ConfigError, match=rf"{key} = .* changes the answer and is not done here.*without=\['{key}'\]"):
        Settings.of({key: value})
    assert Settings.of({key: value}, without=[key]) == Settings()
    assert Settings.of({key: value}, without=key) == Settings()
    assert Settings.of({key: REFUSED[key]}) == Settings()


def test_all_refused_and_unknown_keys_are_named_at_once() -> None:
    with pytest.raises(
        ConfigError, match=r"penalty_alpha = 4 .*; chat_format = 'x' is unknown.*\['penalty_alpha', 'chat_format'\]"
    ):
        Settings.of({"penalty_alpha": 4, "chat_format": "x", "sequence_bias": [], "top_p": 0.5})


@pytest.mark.parametrize(
    "file",
    [
        {"do_sample": "yes"},
        {"do_sample": True, "temperature": 0},
        {"do_sample": True, "temperature": "hot"},
        {"max_new_tokens": 0},
        {"max_length": -1},
        {"eos_token_id": "</s>"},
        {"eos_token_id": [None]},
        {"stop_strings": [""]},
        {"stop_strings": 4},
        {"num_beams": 0},
        {"num_beams": 2, "num_return_sequences": 3},
        {"num_return_sequences": 3},
        {"num_beams": 2, "do_sample": True},
        {"early_stopping": "maybe"},
        {"decoder_start_token_id": [1, 2]},
        {"bad_words_ids": [5]},
        {"suppress_tokens": [-1]},
    ],
)
def test_nonsense_is_a_config_error(file: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        Settings.of(file)
