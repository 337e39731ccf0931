"""Qwen3 (arXiv 2505.09388): Qwen2 without the biases, with a norm on each head's q and k."""

from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Gguf
from qkv.families.gguf import llama_config, table
from qkv.families.heads import decoders
from qkv.families.layers import (
    FULL,
    PRE_ROWS,
    SLIDING,
    read_attention,
    read_context,
    read_model,
    read_rms,
    write_model,
)
from qkv.families.qwen2 import read_blocks, write_windows
from qkv.spec import Model


def read(config: Reader) -> Model:
    context = read_context(config, 32768)
    mixer = read_attention(config, context, kv_heads=32, head_dim=128)
    blocks = read_blocks(config, replace(mixer, qk_norm=read_rms(config)))
    return read_model(config, blocks, context, tied=False)


def write(model: Model) -> dict[str, Any]:
    return {**write_model(model), **write_windows(model)}


FAMILY = Family(
    name="qwen3",
    title="Qwen3",
    architectures=decoders("Qwen3"),
    read=read,
    write=write,
    weights=PRE_ROWS,
    prefix="model.",
    tiny={
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
    },
    variants={
        "tied": {"tie_word_embeddings": True},
        "multi-head": {"num_key_value_heads": 4},
        "multi-query": {"num_key_value_heads": 1},
        "narrow heads": {"head_dim": 8},
        "biases": {"attention_bias": True},
        "upper layers slide": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
        "layer types": {"use_sliding_window": True, "sliding_window": 6, "layer_types": [SLIDING, FULL, FULL]},
        "yarn": {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 1000000.0,
            }
        },
    },
    gguf=Gguf(arch="qwen3", config=llama_config, weights=table()),
)
