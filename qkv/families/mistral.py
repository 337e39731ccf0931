"""Mistral 7B and Nemo (arXiv 2310.06825): LLaMA with a window in every layer (v0.1) or in none (since).

llama.cpp stores them under the architecture `llama`, without the window, so a GGUF file of them is read as LLaMA."""

from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family
from qkv.families.heads import decoders
from qkv.families.layers import (
    FREQUENCIES,
    PRE_ROWS,
    read_attention,
    read_context,
    read_gated,
    read_model,
    read_rms,
    write_model,
    write_sliding,
)
from qkv.spec import Block, Causal, Model, Window


def read(config: Reader) -> Model:
    context = read_context(config, 131072)
    window = config.whole("sliding_window", default=4096, null=None)
    mixer = read_attention(config, context, kv_heads=8, bias=False)
    mixer = replace(mixer, mask=Causal() if window is None else Window(window))
    block = Block(mixer, read_gated(config), read_rms(config))
    return read_model(config, (block,), context, tied=False)


def write(model: Model) -> dict[str, Any]:
    return {**write_model(model, bias=False), "sliding_window": write_sliding(model)["sliding_window"]}


FAMILY = Family(
    name="mistral",
    title="Mistral 7B, Nemo",
    architectures=decoders("Mistral"),
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
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "sliding_window": 6,
    },
    variants={
        "no window": {"sliding_window": None},
        "window of two": {"sliding_window": 2},
        "multi-head": {"num_key_value_heads": 4},
        "multi-query": {"num_key_value_heads": 1},
        "tied": {"tie_word_embeddings": True},
        "wide heads": {"head_dim": 16},
        "base": {"rope_theta": 1000000.0},
        "yarn with a factor": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3}},
    },
)
