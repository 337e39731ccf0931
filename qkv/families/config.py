"""Reading a config.json strictly: every key is taken once, with its type and limits, or stands at its default, or is
known to change nothing. Whatever is left is an error that names it: a silent default would be a silent wrong answer."""

from collections.abc import Mapping
from typing import Any, Final

from qkv.errors import ConfigError
from qkv.spec import Classify, Head, LMHead, MaskedLM, Tag

REQUIRED: Final = object()

# What older configs say of generation; generation_config.json says it now.
_GENERATION = (
    "bos_token_id eos_token_id pad_token_id decoder_start_token_id max_length min_length do_sample early_stopping "
    "num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens"
)
GENERATION = frozenset(_GENERATION.split())

# Keys that change no number that a model computes here: bookkeeping, training's initial values, and what is read
# elsewhere (generation, the tokenizer).
_NEUTRAL = (
    "_name_or_path model_type architectures torch_dtype dtype transformers_version use_cache initializer_range "
    "sep_token_id unk_token_id tokenizer_class task_specific_params output_attentions output_hidden_states "
    "return_dict return_dict_in_generate torchscript use_bfloat16 id2label label2id num_labels finetuning_task "
    "pretraining_tp _attn_implementation_autoset gradient_checkpointing problem_type attn_implementation name_or_path "
    "prefix is_decoder cache_implementation classifier_dropout transformers.js_config is_llama_config unsloth_fixed "
    "unsloth_version"
)
NEUTRAL = frozenset(_NEUTRAL.split()) | GENERATION

# Keys that may stand only at these values.
DEFAULTS: dict[str, Any] = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "pruned_heads": {},
    "tf_legacy_loss": False,
}


class Reader:
    """Takes a config's keys one by one. `where` starts each message."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config, self.where = dict(config), where
        self.taken: set[str] = set()

    def wrong(self, key: str, why: str) -> ConfigError:
        return ConfigError(f"{self.where} config: {key!r} {why}")

    def get(self, *keys: str, default: Any = REQUIRED, null: Any = REQUIRED) -> Any:
        """A key under any of its names; all count as taken. `default` stands where it is absent, and for null too
        unless `null` says what that means. ConfigError: missing, or two names say two things."""
        self.taken.update(keys)
        there = [k for k in keys if k in self.config]
        said = [self.config[k] for k in there if self.config[k] is not None]
        if any(value != said[0] for value in said[1:]):
            raise self.wrong(
                keys[0], f"is said twice, as {' and '.join(f'{v!r:.80}' for v in said)} ({', '.join(there)})"
            )
        if said:
            return said[0]
        if there and null is not REQUIRED:
            return null
        if default is REQUIRED:
            raise self.wrong(keys[0], "is null" if there else "is missing")
        return default

    def whole(self, *keys: str, default: Any = REQUIRED, null: Any = REQUIRED, low: int = 1, high: int = 2**30) -> Any:
        """A whole number in low..high, or what stands for none."""
        value = self.get(*keys, default=default, null=null)
        if value is default or value is null:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(keys[0], f"must be a whole number in {low}..{high}, got {value!r:.80}")
        return value

    def number(
        self, *keys: str, default: Any = REQUIRED, null: Any = REQUIRED, low: float = 0.0, high: float = 1e12
    ) -> Any:
        """A finite number in low..high, or what stands for none."""
        value = self.get(*keys, default=default, null=null)
        if value is default or value is null:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(keys[0], f"must be a number in {low:g}..{high:g}, got {value!r:.80}")
        return float(value)

    def flag(self, *keys: str, default: Any = REQUIRED) -> Any:
        """true or false."""
        value = self.get(*keys, default=default)
        if not isinstance(value, bool):
            raise self.wrong(keys[0], f"must be true or false, got {value!r:.80}")
        return value

    def choice(self, *keys: str, options: Mapping[str, Any], default: Any = REQUIRED) -> Any:
        """One of these words, as what it stands for."""
        value = self.get(*keys, default=default)
        if not isinstance(value, str) or value not in options:
            raise self.wrong(keys[0], f"must be one of {', '.join(options)}, got {value!r:.80}")
        return options[value]

    def section(self, *keys: str, allowed: tuple[str, ...] = ()) -> "Reader":
        """The object under a key (absent: an empty one). `allowed`: the only keys it may have."""
        value = self.get(*keys, default={})
        if not isinstance(value, Mapping):
            raise self.wrong(keys[0], f"must be an object, got {value!r:.80}")
        if allowed and (unknown := sorted(value.keys() - set(allowed))):
            raise self.wrong(keys[0], f"has keys that qkv doesn't understand: {', '.join(unknown)}")
        return Reader(value, f"{self.where} {keys[0]}")

    def layers(self, *keys: str) -> int:
        """The number of layers: far above any real model's, yet small enough to make a list of."""
        return self.whole(*keys, high=4096)  # type: ignore[no-any-return]

    def ignore(self, *keys: str) -> None:
        """Keys of this family that change no number here."""
        self.taken.update(keys)

    def only(self, key: str, *allowed: Any) -> None:
        """A key that may be there only at these values: qkv has no part for the others."""
        if key in self.config and not any(
            self.config[key] == a and isinstance(self.config[key], bool) == isinstance(a, bool) for a in allowed
        ):
            said = " or ".join(map(repr, allowed))
            raise self.wrong(key, f"is {self.config[key]!r:.80}, but only {said} is supported")
        self.taken.add(key)

    def done(self) -> None:
        """Everything was understood, or ConfigError with what was not."""
        left = self.config.keys() - self.taken - NEUTRAL
        for key in sorted(left & DEFAULTS.keys()):
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


# --- what a config says of a head -----------------------------------------------------------------------------------

PROBLEMS = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}


def read_labels(config: Reader, default: int = 2) -> tuple[str, ...]:
    """`id2label`, or as many as `num_labels` says (else transformers' default). ConfigError: they don't agree."""
    count = config.whole("num_labels", "_num_labels", default=None)
    names = config.get("id2label", default=None)
    if names is None:
        return tuple(f"LABEL_{i}" for i in range(default if count is None else count))
    if not isinstance(names, Mapping) or {str(k) for k in names} != {str(i) for i in range(len(names))}:
        raise config.wrong("id2label", f"must name the labels 0, 1, 2, …, got {names!r:.80}")
    by_id = {str(k): v for k, v in names.items()}
    labels = tuple(by_id[str(i)] for i in range(len(names)))
    if not all(isinstance(label, str) for label in labels):
        raise config.wrong("id2label", f"must name each label by a text, got {names!r:.80}")
    if count is not None and count != len(labels):
        raise config.wrong("num_labels", f"is {count}, but id2label names {len(labels)}")
    return labels


def read_problem(config: Reader, labels: tuple[str, ...]) -> Any:
    """`problem_type`; where it isn't said one label is a quantity and several exclude each other (so transformers)."""
    default = "regression" if len(labels) == 1 else "single_label_classification"
    return config.choice("problem_type", options=PROBLEMS, default=default)


def write_labels(labels: tuple[str, ...]) -> dict[str, Any]:
    """`id2label` and its inverse."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def write_head(head: Head) -> dict[str, Any]:
    """What every family's config says of a head in the same way."""
    if isinstance(head, LMHead | MaskedLM):
        return {"tie_word_embeddings": head.tied}
    if isinstance(head, Classify):
        names = {ours: theirs for theirs, ours in PROBLEMS.items()}
        return {**write_labels(head.labels), "problem_type": names[head.problem]}
    return write_labels(head.labels) if isinstance(head, Tag) else {}
