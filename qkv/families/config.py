"""Reading a config.json strictly: every key is taken once, with its type and limits, or stands at its default, or is
known to change nothing. Whatever is left is an error that names it: a silent default would be a silent wrong answer."""

import math
from collections.abc import Mapping
from typing import Any, Final

from qkv.errors import ConfigError

REQUIRED: Final = object()

# Keys that change no number that a model computes here: bookkeeping, training's initial values, and what generation
# reads elsewhere (generation_config.json, the tokenizer).
NEUTRAL = frozenset(
    "_name_or_path model_type architectures torch_dtype dtype transformers_version use_cache initializer_range "
    "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id tokenizer_class task_specific_params "
    "output_attentions output_hidden_states return_dict return_dict_in_generate torchscript use_bfloat16 id2label "
    "label2id num_labels finetuning_task pretraining_tp _attn_implementation_autoset gradient_checkpointing "
    "problem_type attn_implementation name_or_path max_length min_length do_sample early_stopping num_beams "
    "num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens prefix decoder_start_token_id".split()
)

# Keys that may stand only at these values.
DEFAULTS: dict[str, Any] = {
    "is_decoder": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "tf_legacy_loss": False,
}
DEFAULTS_ANY = {"is_decoder"}  # true or false, a decoder-only family is one


class Reader:
    """Takes a config's keys one by one. `where` starts each message."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = dict(config), where
        self.taken: set[str] = set()

    def wrong(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.where} config: {key!r} {why}")

    def get(self, *keys: str, default: Any = REQUIRED) -> Any:
        """The first of these keys that is there; all count as taken."""
        self.taken.update(keys)
        for key in keys:
            if key in self.config:
                return self.config[key]
        if default is REQUIRED:
            raise self.wrong(keys[0], "is missing")
        return default

    def whole(self, *keys: str, default: Any = REQUIRED, low: int = 1, high: int = 2**40) -> Any:
        """A whole number in low..high. A default of None allows null."""
        value = self.get(*keys, default=default)
        if value is None and default is not REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(keys[0], f"must be a whole number in {low}..{high}, got {value!r}")
        return value

    def number(self, *keys: str, default: Any = REQUIRED, low: float = 0.0, high: float = 1e12) -> Any:
        """A finite number in low..high, the low end only where it is 0 by default. A default of None allows null."""
        value = self.get(*keys, default=default)
        if value is None and default is not REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(keys[0], f"must be a finite number, got {value!r}")
        if not low <= value <= high:
            raise self.wrong(keys[0], f"must lie in {low}..{high}, got {value!r}")
        return float(value)

    def flag(self, *keys: str, default: Any = REQUIRED) -> Any:
        """true or false."""
        value = self.get(*keys, default=default)
        if value is None and default is not REQUIRED:
            return default
        if not isinstance(value, bool):
            raise self.wrong(keys[0], f"must be true or false, got {value!r}")
        return value

    def choice(self, *keys: str, options: Mapping[str, Any], default: Any = REQUIRED) -> Any:
        """One of these words, as what it stands for."""
        value = self.get(*keys, default=default)
        if not isinstance(value, str) or value not in options:
            raise self.wrong(keys[0], f"must be one of {', '.join(options)}, got {value!r}")
        return options[value]

    def only(self, key: str, *allowed: Any) -> None:
        """A key that may be there only at these values: qkv has no part for the others."""
        if key in self.config and not any(
            self.config[key] == a and isinstance(self.config[key], bool) == isinstance(a, bool) for a in allowed
        ):
            said = " or ".join(map(repr, allowed))
            raise self.wrong(key, f"is {self.config[key]!r}, but only {said} is supported")
        self.taken.add(key)

    def architecture(self, expected: str) -> None:
        """`architectures`, where it is there, must name the model that this family reads."""
        said = self.config.get("architectures")
        if said is not None and said != [expected]:
            raise self.wrong("architectures", f"is {said!r}, but only [{expected!r}] is supported")

    def done(self) -> None:
        """Everything was understood, or ConfigError with what was not."""
        left = self.config.keys() - self.taken - NEUTRAL
        for key in sorted(left & DEFAULTS.keys() - DEFAULTS_ANY):
            self.only(key, DEFAULTS[key])
        unknown = sorted(left - DEFAULTS.keys())
        if unknown:
            shown = ", ".join(f"{k} = {str(self.config[k])[:60]!r}" for k in unknown)
            raise ConfigError(
                f"{self.where} config: qkv doesn't understand {shown}. A key that is ignored could change the answer;"
                " code named in a config is never run"
            )


ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
    "tanh": "tanh",
}
ACTIVATION_NAMES = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "silu": "silu",
    "relu2": "relu2",
    "tanh": "tanh",
}
