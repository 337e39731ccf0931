"""LLaMA 1 to 3.x (arXiv 2302.13971, 2307.09288, 2407.21783), and the many models built like it (SmolLM, TinyLlama)."""

from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Gguf
from qkv.families.gguf import llama_config, table
from qkv.families.heads import decoders
from qkv.families.layers import (
    FREQUENCIES,
    PRE_ROWS,
    must_be,
    read_attention,
    read_context,
    read_gated,
    read_model,
    read_rms,
    write_model,
)
from qkv.spec import Block, Gated, Model


def read(config: Reader) -> Model:
    config.only("rope_interleaved", False)
    config.ignore("max_sequence_length")  # LLaMA 1's, beside max_position_embeddings
    context = read_context(config, 2048)
    mlp = read_gated(config, bias=config.flag("mlp_bias", default=False))
    block = Block(read_attention(config, context), mlp, read_rms(config))
    return read_model(config, (block,), context, tied=False)


def write(model: Model) -> dict[str, Any]:
    mlp = must_be(model.last.blocks[0].mlp, Gated, model)
    return {**write_model(model), "mlp_bias": mlp.bias}


# ggml turns pairs of neighbours in LLaMA (and in no other family here): q and k are stored in that order.
TURNED = {"blk.{i}.attn_q.weight": ("ggml_rotary",), "blk.{i}.attn_k.weight": ("ggml_rotary",)}

FAMILY = Family(
    name="llama",
    title="LLaMA 1–3, SmolLM2, TinyLlama",
    architectures=decoders("Llama"),
    read=read,
    write=write,
    weights=PRE_ROWS,
    prefix="model.",
    ignored=FREQUENCIES,
    tiny={
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    variants={
        "grouped": {"num_key_value_heads": 2},
        "multi-query": {"num_key_value_heads": 1},
        "tied": {"tie_word_embeddings": True},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "wide heads": {"head_dim": 16},
        "relu": {"hidden_act": "relu"},
        "base": {"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
        "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "linear of old": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 24},
        "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        "yarn, all said": {
            "head_dim": 16,
            "rope_theta": 20.0,  # the ramp then covers most of the head
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "beta_fast": 2.0,
                "beta_slow": 0.25,
                "mscale": 0.7,
                "mscale_all_dim": 0.4,
                "truncate": False,
            },
        },
        "llama3": {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "of transformers 5": {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        },
    },
    gguf=Gguf(arch="llama", config=llama_config, weights=table(TURNED)),
)
