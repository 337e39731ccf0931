"""generation_config.json as transformers 5 reads it: which of its keys are honoured, refused, and without effect.

A key that would change the answer and isn't done here is an error, never passed over: its text would differ from
what transformers gives for the same files. A test holds these tables to transformers' own list of keys.
"""

from collections.abc import Collection, Mapping
from typing import Any

from qkv.errors import ConfigError

FILE = "generation_config.json"

NUMBERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # the same names and meanings here
RENAMED = {  # key → the name of what means the same here
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "num_return_sequences": "n_best",
    "renormalize_logits": "renormalize",
    "min_length": "min_length",
    "min_new_tokens": "min_tokens",
    "forced_bos_token_id": "forced_first",
    "forced_eos_token_id": "forced_last",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "suppress_first",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "bad_words_ids": "bad_words",
    "decoder_start_token_id": "start",
}
HONOURED = (*NUMBERS, *RENAMED, "do_sample", "max_new_tokens", "max_length", "eos_token_id", "stop_strings")

# key → the value at which it changes nothing (None and an empty list always count as such)
REFUSED: dict[str, Any] = {
    # other searches
    "num_beam_groups": 1,
    "diversity_penalty": 0,
    "penalty_alpha": 0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "guidance_scale": 1,
    "token_healing": False,
    # other truncations
    "top_h": None,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    # tokens forbidden, forced or made more or less likely
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    # other ends
    "max_time": None,
    "is_assistant": False,
}

NO_EFFECT = frozenset(
    {
        # what NaN becomes (it is an error here)
        "remove_invalid_values",
        # how it is computed, with the same answer
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
        *("compile_config", "disable_compile", "continuous_batching_config"),
        # drafts, which the model then confirms
        *("use_mtp", "speculation_type", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
        # what else transformers' generate returns
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        # the tokenizer puts the bos; there is no padding
        *("pad_token_id", "bos_token_id"),
        # where the file comes from
        *("_from_model_config", "_commit_hash", "transformers_version"),
    }
)


def read_generation_config(
    config: Mapping[str, Any], without: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The Settings' fields that the file sets, and who said each: the file, or what transformers takes where it is
    silent (top_k 50 while sampling). `without`: keys to leave out.

    do_sample false or absent is greedy whatever the temperature says. ConfigError: keys that are refused or unknown,
    all of them at once."""
    left_out = {without} if isinstance(without, str) else set(without)
    config = {key: value for key, value in config.items() if value is not None and key not in left_out}
    _refuse(config)
    sample = config.get("do_sample", False)
    if not isinstance(sample, bool):
        raise ConfigError(f"{FILE}: do_sample must be true or false, got {sample!r}")
    said = {name: config[name] for name in NUMBERS if name in config}
    sources = dict.fromkeys(said, FILE)
    if not sample:
        if said or "do_sample" in config:
            sources["temperature"] = FILE if "do_sample" in config else f"{FILE} without do_sample"
        said["temperature"] = 0.0
    elif said.get("temperature") == 0:
        raise ConfigError(f"{FILE}: do_sample true and temperature 0 contradict each other; give a temperature")
    else:
        for name, value in (("temperature", 1.0), ("top_k", 50)):
            if name not in said:
                said[name], sources[name] = value, "transformers' default"
    renamed = {name: config[key] for key, name in RENAMED.items() if key in config}
    if "min_new_tokens" in config:  # which goes before min_length, as max_new_tokens before max_length
        renamed.pop("min_length", None)
    for name, value in {**_length(config), **_ends(config), **renamed}.items():
        said[name], sources[name] = value, FILE
    return said, sources


def _refuse(config: Mapping[str, Any]) -> None:
    wrong = []
    for key, value in config.items():
        if key in REFUSED:
            if value != REFUSED[key] and value not in ([], {}):
                wrong.append(f"{key} = {value!r} changes the answer and is not done here")
        elif key not in HONOURED and key not in NO_EFFECT:
            wrong.append(f"{key} = {value!r} is unknown")
    if wrong:
        names = ", ".join(repr(w.split(" = ")[0]) for w in wrong)
        raise ConfigError(f"{FILE}: {'; '.join(wrong)}. To go on without: without=[{names}]")


def _length(config: Mapping[str, Any]) -> dict[str, Any]:
    """max_new_tokens before max_length, as transformers has it."""
    if "max_new_tokens" in config:
        return {"max_tokens": config["max_new_tokens"]}
    return {"max_tokens": None, "max_length": config["max_length"]} if "max_length" in config else {}


def _ends(config: Mapping[str, Any]) -> dict[str, Any]:
    ends: dict[str, Any] = {}
    if "eos_token_id" in config:
        eos = config["eos_token_id"]
        ends["stop_tokens"] = tuple(eos) if isinstance(eos, list) else (eos,)
    if "stop_strings" in config:
        ends["stop"] = config["stop_strings"]
    return ends
