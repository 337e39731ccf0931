"""Gemma (arXiv 2403.08295): LLaMA with 1 + w in its norms, embeddings · √dim, wide heads, and GELU in the gate."""

from typing import Any

from qkv.families.config import ACTIVATIONS, Reader
from qkv.families.family import Family, Gguf
from qkv.families.gguf import llama_config, table
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
)
from qkv.spec import Block, Embed, Gated, Model


def read(config: Reader) -> Model:
    config.only("use_bidirectional_attention", None, False)
    context = read_context(config, 8192)
    mixer = read_attention(config, context, kv_heads=16, head_dim=256)
    block = Block(mixer, _mlp(config), read_rms(config, one_plus=True))
    return read_model(config, (block,), context, tied=True, embed=scaled(config))


def _mlp(config: Reader) -> Gated:
    """The first configs say "gelu" for the tanh approximation that was trained with (transformers#29402)."""
    config.only("hidden_activation", None, "gelu_pytorch_tanh")
    return read_gated(config, default="gelu_pytorch_tanh", options={**ACTIVATIONS, "gelu": "gelu_tanh"})


def scaled(config: Reader) -> Embed:
    """Token vectors · √dim."""
    return Embed(scale=config.whole("hidden_size") ** 0.5)


def write(model: Model) -> dict[str, Any]:
    return write_model(model)


# ggml stores 1 + w of every norm.
NORMS = {
    f"{name}.weight": ("minus_one",)
    for name in (
        "output_norm",
        "blk.{i}.attn_norm",
        "blk.{i}.attn_q_norm",
        "blk.{i}.attn_k_norm",
        "blk.{i}.post_attention_norm",
        "blk.{i}.ffn_norm",
        "blk.{i}.post_ffw_norm",
    )
}


def gguf_config(metadata: Reader) -> dict[str, Any]:
    """llama.cpp's Gemmas have no key for the activation: it is GELU's tanh approximation."""
    return {**llama_config(metadata), "hidden_act": "gelu_pytorch_tanh"}


FAMILY = Family(
    name="gemma",
    title="Gemma",
    architectures=decoders("Gemma"),
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
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 64,
    },
    variants={
        "multi-query": {"num_key_value_heads": 1},
        "grouped": {"num_key_value_heads": 2},
        "narrow heads": {"head_dim": 8},
        "untied": {"tie_word_embeddings": False},
        "biases": {"attention_bias": True},
        "gelu of old": {"hidden_act": "gelu", "hidden_activation": None},
        "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    },
    gguf=Gguf(arch="gemma", config=gguf_config, weights=table(NORMS)),
)
