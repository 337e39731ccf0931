"""Gemma 2 (arXiv 2408.00118): norms on both sides of each part, soft caps, and a window in every other layer."""

from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Gguf
from qkv.families.gemma import NORMS, scaled
from qkv.families.gguf import llama_config, table
from qkv.families.heads import decoders
from qkv.families.layers import (
    FULL,
    SANDWICH_ROWS,
    SLIDING,
    by_type,
    layer_types,
    must_be,
    read_attention,
    read_context,
    read_gated,
    read_model,
    read_rms,
    sliding,
    softcap_of,
    write_model,
    write_sliding,
)
from qkv.spec import Attention, Block, Model, Window


def read(config: Reader) -> Model:
    context = read_context(config, 8192)
    mixer = read_attention(config, context, kv_heads=4, head_dim=256)
    mixer = replace(
        mixer,
        scale=read_scale(config, mixer),
        softcap=config.number("attn_logit_softcapping", default=50.0, null=None),
    )
    types = layer_types(config, [FULL if i % 2 else SLIDING for i in range(config.layers("num_hidden_layers"))])
    window = sliding(config, types, 4096)
    config.only("sliding_window_size", window)  # the first releases say it twice
    full = read_block(config, mixer)
    blocks = by_type(types, replace(full, mixer=replace(mixer, mask=Window(window))), full)
    softcap = config.number("final_logit_softcapping", default=30.0, null=None)
    return read_model(config, blocks, context, tied=True, embed=scaled(config), softcap=softcap)


def read_scale(config: Reader, mixer: Attention) -> float | None:
    """`query_pre_attn_scalar`: scores are divided by its root. None where it is the head's width, as it would be."""
    scalar = config.number("query_pre_attn_scalar", default=256.0, low=1e-9)
    return None if scalar == mixer.head_width(config.whole("hidden_size")) else scalar**-0.5


def read_block(config: Reader, mixer: Attention) -> Block:
    """The block of Gemma 2 and 3."""
    config.only("use_bidirectional_attention", None, False)
    mlp = read_gated(config, "hidden_activation", "gelu_pytorch_tanh")
    config.only("hidden_act", "gelu_pytorch_tanh", config.get("hidden_activation", default="gelu_pytorch_tanh"))
    return Block(mixer, mlp, read_rms(config, one_plus=True), place="sandwich")


def write(model: Model) -> dict[str, Any]:
    mixer = must_be(model.last.blocks[0].mixer, Attention, model)
    return {
        **write_model(model, activation="hidden_activation"),
        **write_windows(model),
        "query_pre_attn_scalar": write_scale(model, mixer),
        "attn_logit_softcapping": mixer.softcap,
        "final_logit_softcapping": softcap_of(model),
    }


def write_windows(model: Model) -> dict[str, Any]:
    """transformers wants a window of Gemma 2 and 3 even where no layer slides: its default."""
    return {key: said for key, said in write_sliding(model).items() if said is not None}


def write_scale(model: Model, mixer: Attention) -> int:
    """`query_pre_attn_scalar`, for which transformers takes whole numbers only."""
    return mixer.head_width(model.dim) if mixer.scale is None else round(mixer.scale**-2)


def gguf_config(metadata: Reader) -> dict[str, Any]:
    """llama.cpp keeps no scale: it is 1/√(dim/heads) for 27B (46 layers), 1/√head_dim for the others."""
    shared = llama_config(metadata)
    width = shared["hidden_size"] // shared["num_attention_heads"]
    return {
        **shared,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width if shared["num_hidden_layers"] == 46 else shared["head_dim"],
        "sliding_window": metadata.whole("attention.sliding_window", default=4096),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", default=30.0),
    }


FAMILY = Family(
    name="gemma2",
    title="Gemma 2",
    architectures=decoders("Gemma2"),
    read=read,
    write=write,
    weights=SANDWICH_ROWS,
    prefix="model.",
    tiny={
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "max_position_embeddings": 64,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    variants={
        "scale": {"query_pre_attn_scalar": 144},
        "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "multi-head": {"num_key_value_heads": 4},
        "multi-query": {"num_key_value_heads": 1},
        "untied": {"tie_word_embeddings": False},
        "biases": {"attention_bias": True},
        "layer types": {"layer_types": [FULL, FULL, SLIDING]},
        "none slides": {"layer_types": [FULL, FULL, FULL]},
        "of its release": {
            "hidden_act": "gelu_pytorch_tanh",
            "sliding_window_size": 6,
            "cache_implementation": "hybrid",
        },
    },
    gguf=Gguf(arch="gemma2", config=gguf_config, weights=table(NORMS)),
)
