"""GGUF: tensor names and metadata that families share (ggml's gguf.md and llama.cpp's `gguf-py/constants.py`).

A family's metadata becomes a Hugging Face config, so that a GGUF file goes through the same strict reading as a folder.
"""

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Row, pair

BLOCK = "decoder.blocks.{i}."

TENSORS: tuple[Row, ...] = (
    Row("token_embd.weight", "decoder.embed.tokens.weight"),
    Row("position_embd.weight", "decoder.embed.position.weight"),
    *pair("blk.{i}.attn_norm", BLOCK + "mixer_norm"),
    *pair("blk.{i}.attn_q", BLOCK + "mixer.q"),
    *pair("blk.{i}.attn_k", BLOCK + "mixer.k"),
    *pair("blk.{i}.attn_v", BLOCK + "mixer.v"),
    *pair("blk.{i}.attn_output", BLOCK + "mixer.out"),
    Row("blk.{i}.attn_q_norm.weight", BLOCK + "mixer.q_norm.weight"),
    Row("blk.{i}.attn_k_norm.weight", BLOCK + "mixer.k_norm.weight"),
    Row("blk.{i}.post_attention_norm.weight", BLOCK + "mixer_after.weight"),
    *pair("blk.{i}.ffn_norm", BLOCK + "mlp_norm"),
    *pair("blk.{i}.ffn_gate", BLOCK + "mlp.gate"),
    *pair("blk.{i}.ffn_up", BLOCK + "mlp.up"),
    *pair("blk.{i}.ffn_down", BLOCK + "mlp.down"),
    Row("blk.{i}.post_ffw_norm.weight", BLOCK + "mlp_after.weight"),
    *pair("output_norm", "decoder.norm"),
    Row("output.weight", "head.weight"),
)


def table(via: Mapping[str, tuple[str, ...]] | None = None, own: tuple[Row, ...] = ()) -> tuple[Row, ...]:
    """The shared names with a family's transforms (by name), its own rows in place of those for the same parameters."""
    theirs = {target for row in own for target in row.targets}
    shared = (row for row in TENSORS if theirs.isdisjoint(row.targets))
    return (*own, *(replace(row, via=(via or {}).get(row.theirs, ())) for row in shared))


# Metadata that says nothing about what is computed.
NEUTRAL = ("rope.dimension_count_swa", "rope.scaling.finetuned", "tensor_data_layout")


def single(value: float) -> float:
    """A float32 of the file as the shortest decimal that rounds to it: 1e-05, which was meant, for 9.99999974e-06."""
    bits = struct.pack("<f", value)
    decimals = (float(f"{value:.{digits}g}") for digits in range(6, 9))
    return next((short for short in decimals if struct.pack("<f", short) == bits), value)


def llama_config(metadata: Reader) -> dict[str, Any]:
    """The keys that LLaMA-like architectures share. `metadata` holds the keys of the file's own architecture, without
    its name in front (`block_count`, `attention.head_count`, …)."""
    dim, heads = metadata.whole("embedding_length"), metadata.whole("attention.head_count")
    head_dim = metadata.whole("attention.key_length", default=dim // heads)
    metadata.only("attention.value_length", head_dim)
    metadata.only("rope.dimension_count", head_dim)
    metadata.ignore(*NEUTRAL)
    return {
        "hidden_size": dim,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.whole("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "num_hidden_layers": metadata.whole("block_count"),
        "intermediate_size": metadata.whole("feed_forward_length"),
        "max_position_embeddings": metadata.whole("context_length"),
        "rms_norm_eps": single(metadata.number("attention.layer_norm_rms_epsilon")),
        "rope_theta": single(metadata.number("rope.freq_base", default=10000.0, low=1.0)),
        "rope_scaling": _scaling(metadata),
    }


def _scaling(metadata: Reader) -> dict[str, Any] | None:
    """`rope.scaling.*` as `rope_scaling`. (LLaMA 3.1's scaling is a tensor in GGUF: see qkv.load.ggml.) As in llama.cpp
    it is linear where no type is said, and none where no factor is."""
    kind = metadata.get("rope.scaling.type", default="linear")
    factor = single(metadata.number("rope.scaling.factor", "rope.scale_linear", default=0.0))
    length = metadata.whole("rope.scaling.original_context_length", default=None)
    if kind == "none" or factor in (0.0, 1.0):
        return None
    if kind != "yarn":
        return {"rope_type": kind, "factor": factor}
    metadata.only("rope.scaling.attn_factor", 1.0)
    metadata.only("rope.scaling.yarn_ext_factor", 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": length,
        "beta_fast": metadata.number("rope.scaling.yarn_beta_fast", default=None),
        "beta_slow": metadata.number("rope.scaling.yarn_beta_slow", default=None),
        "mscale": 1.0,
        "mscale_all_dim": single(metadata.number("rope.scaling.yarn_log_multiplier", default=0.0)),
    }
