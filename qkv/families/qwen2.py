"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): LLaMA with biases on q, k and v, and windows in the upper layers
where the config asks for them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Gguf
from qkv.families.gguf import llama_config, table
from qkv.families.heads import decoders
from qkv.families.layers import (
    FREQUENCIES,
    FULL,
    PRE_ROWS,
    SLIDING,
    by_type,
    layer_types,
    read_attention,
    read_context,
    read_gated,
    read_model,
    read_rms,
    sliding,
    write_model,
    write_sliding,
)
from qkv.spec import Attention, Block, Model, Window


def read(config: Reader) -> Model:
    config.only("use_mrope", False)
    context = read_context(config, 32768)
    blocks = read_blocks(config, read_attention(config, context, kv_heads=32, bias=True))
    return read_model(config, blocks, context, tied=False)


def read_blocks(config: Reader, mixer: Attention) -> tuple[Block, ...]:
    """The blocks of Qwen2 and Qwen3: those from layer `max_window_layers` up slide, if `use_sliding_window`."""
    types = layer_types(config, _upper(config))
    used = config.flag("use_sliding_window", default=False)
    window = sliding(config, types, 4096)
    if SLIDING in types and not used:
        raise config.wrong("layer_types", "has layers that slide, but 'use_sliding_window' is false")
    full = Block(mixer, read_gated(config), read_rms(config))
    return by_type(types, replace(full, mixer=replace(mixer, mask=Window(window))), full)


def _upper(config: Reader) -> Sequence[str]:
    layers, first = config.layers("num_hidden_layers"), config.whole("max_window_layers", default=28, low=0)
    slides = config.flag("use_sliding_window", default=False) and config.get("sliding_window", default=4096, null=None)
    return [SLIDING if slides and i >= first else FULL for i in range(layers)]


def write_windows(model: Model) -> dict[str, Any]:
    """The windows as Qwen's configs say them."""
    written = write_sliding(model)
    return {**written, "use_sliding_window": written["sliding_window"] is not None}


def write(model: Model) -> dict[str, Any]:
    return {**write_model(model, bias=False), **write_windows(model)}


FAMILY = Family(
    name="qwen2",
    title="Qwen2, Qwen2.5",
    architectures=decoders("Qwen2"),
    read=read,
    write=write,
    weights=PRE_ROWS,
    prefix="model.",
    ignored=FREQUENCIES,
    tiny={
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    variants={
        "tied": {"tie_word_embeddings": True},
        "multi-head": {"num_key_value_heads": 4},
        "multi-query": {"num_key_value_heads": 1},
        "upper layers slide": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        "layer types": {"use_sliding_window": True, "sliding_window": 6, "layer_types": [SLIDING, FULL, SLIDING]},
        "base": {"rope_theta": 1000000.0, "sliding_window": 32},
        "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    },
    gguf=Gguf(arch="qwen2", config=llama_config, weights=table()),
)
