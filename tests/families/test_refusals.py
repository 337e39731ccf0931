"""What a config must not say: numbers that no model has (hardening L12), keys that nobody understands (L11), and what
qkv has no part for. Each is a ConfigError that names the key or the spec's field, before anything is allocated."""

import re
import time
from typing import Any

import pytest

from qkv.errors import ConfigError
from qkv.families.family import find, names
from tests.families.reference import each_family, leaves, raw

KEYS = {  # what a key is called in the families, and the spec's fields that may be named in its place
    "layers": (("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), "Stack.layers"),
    "vocab": (("vocab_size",), "Model.vocab"),
    "dim": (("hidden_size", "n_embd", "dim", "d_model"), "Model.dim"),
    "heads": (
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
        "Attention.heads|Attention.kv_heads",
    ),
    "kv_heads": (("num_key_value_heads",), "Attention.kv_heads"),
    "theta": (("rope_theta", "rotary_emb_base"), "Rotary.base"),
    "eps": (("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), "RMS.eps|LayerNorm.eps"),
    "dropout": (
        ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "dropout_rate"),
        "Attention.dropout",
    ),
    "width": (("intermediate_size", "n_inner", "hidden_dim", "d_ff", "encoder_ffn_dim"), "Plain.width|Gated.width"),
    "context": (("max_position_embeddings", "n_positions"), "Learned.length|Model.context"),
    "tied": (("tie_word_embeddings",), "LMHead.tied"),
}
ENCODERS = {"bert", "roberta", "xlm-roberta", "distilbert", "albert", "electra", "mpnet"}
LIKE_BART = {"bart", "mbart", "pegasus", "marian"}
SEQ2SEQ = {"t5", "mt5", *LIKE_BART}
WITHOUT = {  # families that have no such key
    "kv_heads": {"gpt2", "gpt_neox", "bloom", "gpt_bigcode", *ENCODERS, *SEQ2SEQ},
    "theta": {"gpt2", "gpt_bigcode", "bloom", *ENCODERS, *SEQ2SEQ},
    "width": {"bloom"},
    "context": {"bloom", "t5", "mt5"},
    "eps": {"distilbert", *LIKE_BART},
    "heads": {"t5", "mt5"},  # any number fits: d_kv says how wide they are
    "tied": {"electra"},  # of its first head
}
WRONG: dict[str, list[Any]] = {
    "layers": [10**9, 0, -1, 2.0, "2", True, [2], 2**63, 10**400],
    "vocab": [2**40, 0, -5, "97", 97.0, None],
    "dim": [0, -1, float("nan"), "8", 2**40, {}],
    "heads": [0, 3, 5, -4, "4", 2**40],
    "kv_heads": [0, 3, 8, -1, "2", 1.5],
    "theta": [0, -10000.0, 0.5, float("inf"), float("nan"), "10000", 10**400],
    "eps": [0, -1e-5, 2.0, float("nan"), "1e-5", True],
    "dropout": [2, -0.1, float("nan"), "0"],
    "width": [0, -48, 2**40, 48.5],
    "context": [0, -1, 2**40, "64"],
    "tied": [1, "yes", 0.0],
}


def configs(name: str) -> list[dict[str, Any]]:
    """The family's tiny config and each of its variants."""
    return [raw(name, variant) for variant in ("tiny", *find(name).variants)]


def key_of(name: str, what: str) -> str:
    """The key of a family's config for this."""
    config = find(name).config(find(name).spec(find(name).tiny))
    return next(k for k in KEYS[what][0] if k in config)


@pytest.mark.parametrize(("name", "what"), [(n, w) for n in names() for w in WRONG if n not in WITHOUT.get(w, ())])
def test_a_number_that_no_model_has(name: str, what: str) -> None:
    key = key_of(name, what)
    began = time.perf_counter()
    for value in WRONG[what]:
        with pytest.raises(ConfigError, match=f"'{key}'|{KEYS[what][1]}"):
            find(name).spec({**find(name).tiny, key: value})
    assert time.perf_counter() - began < 1


@each_family
@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "trust_remote_code",
        "_attn_implementation_internal",
        "custom_pipelines",
        "quantization_config",
        "hiden_size",
        "rope_theta_2",
        "num_experts",
        "alibi",
    ],
)
def test_a_key_that_is_not_understood(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} config.*{key}"):
        find(name).spec({**find(name).tiny, key: {"AutoModel": "evil.Model"}})


@each_family
def test_no_key_is_missed(name: str) -> None:
    """A key under another name is either missing, or not understood, or at odds with the rest."""
    for config in configs(name):
        for key in config:
            renamed = {k + "_" * (k == key): v for k, v in config.items()}
            with pytest.raises(ConfigError, match=f"{re.escape(key)}|Attention.kv_heads"):
                find(name).spec(renamed)


@each_family
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("add_cross_attention", True),
        ("cross_attention_hidden_size", 64),
        ("tie_encoder_decoder", True),
        ("chunk_size_feed_forward", 4),
        ("pruned_heads", {"0": [1]}),
        ("architectures", ["LlamaForMultipleChoice"]),
        ("architectures", "LlamaForCausalLM"),
    ],
)
def test_what_another_kind_of_model_says(name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}' is .* only .* supported"):
        find(name).spec({**find(name).tiny, key: value})


@each_family
def test_another_number_of_stacks(name: str) -> None:
    other = name not in SEQ2SEQ
    with pytest.raises(ConfigError, match=f"is_encoder_decoder' is {other}.* only {not other} is supported"):
        find(name).spec({**find(name).tiny, "is_encoder_decoder": other})


SLIDING, FULL = "sliding_attention", "full_attention"
UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type.*'longrope'"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "'factor' is missing"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "doesn't understand beta"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "'factor'"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": 1}}, "'truncate'"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "type": "linear", "factor": 2.0}}, "'rope_type' is said twice"),
    ("llama", {"rope_scaling": [8.0]}, "'rope_scaling' must be an object"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}}, "orig"),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        "'rope_scaling' is said twice",
    ),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor' is 0.5"),
    ("llama", {"rope_interleaved": True}, "'rope_interleaved'"),
    ("llama", {"hidden_act": "quick_gelu"}, "'hidden_act' must be one of"),
    ("llama", {"head_dim": 7}, "Rotary.dims"),
    ("llama", {"layer_types": [FULL, FULL]}, "layer_types"),
    ("llama", {"sliding_window": 6}, "sliding_window"),
    ("gpt_neox", {"rotary_pct": 1.5}, "'rotary_pct'"),
    ("gpt_neox", {"rotary_pct": 0.2}, "Rotary.dims"),
    ("gpt_neox", {"rotary_pct": 0.0}, "Rotary.dims"),
    ("gpt_neox", {"rope_theta": 10000.0}, "rope_theta"),
    ("gpt_neox", {"hidden_dropout_prob": 0.1}, "'hidden_dropout_prob'"),
    ("gpt2", {"n_embd": 32, "hidden_size": 64}, "'n_embd' is said twice, as 32 and 64"),
    ("gpt_bigcode", {"num_key_value_heads": 2}, "'num_key_value_heads'"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "'apply_residual_connection_post_layernorm'"),
    ("bloom", {"n_inner": 64}, "'n_inner'"),
    ("mistral", {"sliding_window": 0}, "'sliding_window'"),
    ("mistral", {"attention_bias": True}, "attention_bias"),
    ("gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ("gemma", {"hidden_activation": "silu"}, "'hidden_activation'"),
    ("gemma2", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ("gemma2", {"hidden_act": "silu"}, "'hidden_act'"),
    ("gemma2", {"sliding_window_size": 8}, "'sliding_window_size'"),
    ("gemma2", {"sliding_window": None}, "'sliding_window' is null"),
    ("gemma2", {"layer_types": [FULL]}, "'layer_types'"),
    ("gemma2", {"layer_types": [FULL, FULL, "chunked_attention"]}, "'layer_types'"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "'query_pre_attn_scalar'"),
    ("gemma2", {"attn_logit_softcapping": 0.0}, "Attention.softcap"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "'use_bidirectional_attention'"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping'"),
    ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "'rope_parameters'.*rope_type"),
    ("gemma3_text", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "scales sliding"),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 0}, "'sliding_window_pattern'"),
    ("qwen2", {"use_mrope": True}, "'use_mrope'"),
    ("qwen2", {"layer_types": [FULL, SLIDING, FULL]}, "use_sliding_window"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None, "layer_types": [SLIDING] * 3}, "'sliding_window'"),
    ("qwen3", {"max_window_layers": -1}, "'max_window_layers'"),
    *[(name, {"is_decoder": True}, "'is_decoder' is True, but only False") for name in sorted(ENCODERS)],
    *[(name, {"position_embedding_type": "relative_key"}, "'relative_key'") for name in sorted(ENCODERS)],
    *[
        (name, {"tie_word_embeddings": False}, "'tie_word_embeddings' is False, but only True")
        for name in ("bert", "roberta", "xlm-roberta", "albert", "mpnet")
    ],
    ("bert", {"type_vocab_size": 0}, "'type_vocab_size'"),
    ("bert", {"hidden_act": "quick_gelu"}, "'hidden_act' must be one of"),
    ("bert", {"embedding_size": 16}, "embedding_size"),
    ("roberta", {"max_position_embeddings": 2}, "'max_position_embeddings' must be a whole number in 3"),
    ("roberta", {"pad_token_id": -1}, "'pad_token_id'"),
    ("distilbert", {"dim": 32, "hidden_size": 64}, "'dim' is said twice, as 32 and 64"),
    ("distilbert", {"layer_norm_eps": 1e-5}, "layer_norm_eps"),
    ("distilbert", {"type_vocab_size": 2}, "type_vocab_size"),
    ("distilbert", {"tie_weights_": False}, "'tie_weights_'"),
    ("albert", {"num_hidden_groups": 2}, "'num_hidden_groups' is 2, but only 1"),
    ("albert", {"inner_group_num": 2}, "'inner_group_num' is 2, but only 1"),
    ("albert", {"net_structure_type": 1}, "'net_structure_type'"),
    ("albert", {"layers_to_keep": [0]}, "'layers_to_keep'"),
    ("electra", {"embedding_size": 0}, "'embedding_size'"),
    ("mpnet", {"relative_attention_num_buckets": 16}, "'relative_attention_num_buckets' is 16, but only 32"),
    ("mpnet", {"type_vocab_size": 2}, "type_vocab_size"),
    ("t5", {"num_heads": 0}, "Attention.heads|'num_heads'"),
    ("t5", {"feed_forward_proj": "gated-quick_gelu"}, "'feed_forward_proj' must be one of"),
    ("t5", {"feed_forward_proj": "sparse-relu"}, "'feed_forward_proj' must be one of"),
    ("t5", {"feed_forward_proj": "gated-gelu", "is_gated_act": False}, "'is_gated_act' is False, but only True"),
    ("t5", {"dense_act_fn": "gelu_new"}, "'dense_act_fn' is 'gelu_new', but feed_forward_proj says 'relu'"),
    ("t5", {"scale_decoder_outputs": 1}, "'scale_decoder_outputs'"),
    ("t5", {"relative_attention_max_distance": 4}, "RelativeBias.distance"),
    ("t5", {"relative_attention_num_buckets": 2}, "RelativeBias.buckets"),
    ("t5", {"num_decoder_layers": 0}, "'num_decoder_layers'"),
    ("t5", {"d_model": 32, "hidden_size": 64}, "'d_model' is said twice, as 32 and 64"),
    ("t5", {"decoder_start_token_id": -1}, "'decoder_start_token_id'"),
    ("t5", {"architectures": ["T5EncoderModel"], "is_encoder_decoder": 0}, "'is_encoder_decoder' is 0, but only"),
    ("mt5", {"scale_decoder_outputs": True}, "scale_decoder_outputs"),
    *[
        (name, {"tie_word_embeddings": False}, "'tie_word_embeddings' is False, but only True")
        for name in sorted(LIKE_BART - {"marian"})
    ],
    ("marian", {"tie_word_embeddings": False}, "'tie_word_embeddings' is False, which needs share_encoder"),
    *[(name, {"static_position_embeddings": name in ("bart", "mbart")}, "'static_pos") for name in sorted(LIKE_BART)],
    *[(name, {"normalize_before": name in ("bart", "marian")}, "'normalize_before'") for name in sorted(LIKE_BART)],
    *[(name, {"normalize_embedding": name in ("pegasus", "marian")}, "'normalize_emb") for name in sorted(LIKE_BART)],
    ("bart", {"add_bias_logits": True}, "'add_bias_logits' is True, but only False"),
    ("bart", {"decoder_attention_heads": 3}, "Attention.heads"),
    ("bart", {"decoder_ffn_dim": 0}, "Plain.width|'decoder_ffn_dim'"),
    ("bart", {"activation_dropout": 1.5}, "'activation_dropout'"),
    ("bart", {"encoder_layers": 2, "num_hidden_layers": 3}, "'encoder_layers' is said twice, as 2 and 3"),
    ("bart", {"architectures": ["BartForCausalLM"]}, "'architectures'"),
    ("mbart", {"architectures": ["MBartForSequenceClassification"]}, "'architectures'"),
    ("marian", {"decoder_vocab_size": 98}, "'decoder_vocab_size' is 98, but only 97"),
    ("mpnet", {"classifier_dropout": 0.3, "architectures": ["MPNetForMultipleChoice"]}, "'architectures'"),
]


@pytest.mark.parametrize(("name", "changes", "said"), UNSUPPORTED, ids=[f"{n} {[*c]}" for n, c, _ in UNSUPPORTED])
def test_what_there_is_no_part_for(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find(name).spec({**find(name).tiny, **changes})


@each_family
def test_any_value_of_another_type_is_refused_or_changes_nothing(name: str) -> None:
    """Every leaf of a config in turn as a list: ConfigError, never a crash and never another model."""
    for config in configs(name):
        understood = find(name).spec(config)
        for path, _ in leaves(config):
            first, _, rest = path.partition(".")
            broken = {**config, first: {**config[first], rest: [1, "x"]} if rest else [1, "x"]}
            try:
                spec = find(name).spec(broken)
            except ConfigError:
                continue
            assert spec == understood, path
