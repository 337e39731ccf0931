"""GGUF: tensor names and metadata that families share (ggml's gguf.md and llama.cpp's `gguf-py/constants.py`).

A family's metadata becomes a Hugging Face config, so that a GGUF file goes through the same strict reading as a folder.
"""

from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Row

BLOCK = "decoder.blocks.{i}."


def _pair(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row(theirs + ".weight", ours + ".weight"), Row(theirs + ".bias", ours + ".bias")


TENSORS: tuple[Row, ...] = (
    Row("token_embd.weight", "decoder.embed.tokens.weight"),
    Row("position_embd.weight", "decoder.embed.position.weight"),
    *_pair("blk.{i}.attn_norm", BLOCK + "mixer_norm"),
    *_pair("blk.{i}.attn_q", BLOCK + "mixer.q"),
    *_pair("blk.{i}.attn_k", BLOCK + "mixer.k"),
    *_pair("blk.{i}.attn_v", BLOCK + "mixer.v"),
    *_pair("blk.{i}.attn_output", BLOCK + "mixer.out"),
    Row("blk.{i}.attn_q_norm.weight", BLOCK + "mixer.q_norm.weight"),
    Row("blk.{i}.attn_k_norm.weight", BLOCK + "mixer.k_norm.weight"),
    Row("blk.{i}.post_attention_norm.weight", BLOCK + "mixer_after.weight"),
    *_pair("blk.{i}.ffn_norm", BLOCK + "mlp_norm"),
    *_pair("blk.{i}.ffn_gate", BLOCK + "mlp.gate"),
    *_pair("blk.{i}.ffn_up", BLOCK + "mlp.up"),
    *_pair("blk.{i}.ffn_down", BLOCK + "mlp.down"),
    Row("blk.{i}.post_ffw_norm.weight", BLOCK + "mlp_after.weight"),
    *_pair("output_norm", "decoder.norm"),
    Row("output.weight", "head.weight"),
)

# Metadata that says nothing about what is computed.
NEUTRAL = ("rope.dimension_count_swa", "tensor_data_layout")


def llama_config(metadata: Reader) -> dict[str, Any]:
    """The keys that LLaMA-like architectures share. `metadata` holds the keys of the file's own architecture, without
    its name in front (`block_count`, `attention.head_count`, …)."""
    dim, heads = metadata.whole("embedding_length"), metadata.whole("attention.head_count")
    head_dim = metadata.whole("attention.key_length", default=None) or dim // heads
    metadata.only("attention.value_length", head_dim)
    metadata.taken.update(NEUTRAL)
    return {
        "hidden_size": dim,
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.whole("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "num_hidden_layers": metadata.whole("block_count"),
        "intermediate_size": metadata.whole("feed_forward_length"),
        "max_position_embeddings": metadata.whole("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        **rope_config(metadata, head_dim),
    }


def rope_config(metadata: Reader, head_dim: int) -> dict[str, Any]:
    """`rope.*` as rope_theta and rope_scaling. (LLaMA 3.1's scaling is a tensor in GGUF: see qkv.load.ggml.)"""
    out: dict[str, Any] = {"rope_theta": metadata.number("rope.freq_base", default=10000.0, low=1.0)}
    dims = metadata.whole("rope.dimension_count", default=head_dim)
    if dims != head_dim:
        out["partial_rotary_factor"] = dims / head_dim
    kind = metadata.get("rope.scaling.type", default="none")
    linear = metadata.number("rope.scale_linear", default=None)
    if kind == "none" and linear not in (None, 1.0):
        kind = "linear"
    factor = metadata.number("rope.scaling.factor", default=linear)
    original = metadata.whole("rope.scaling.original_context_length", default=None)
    metadata.taken.add("rope.scaling.finetuned")
    if kind == "yarn":
        for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor"):
            metadata.only(key, 1.0)
        out["rope_scaling"] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    elif kind != "none":
        out["rope_scaling"] = {"rope_type": kind, "factor": factor}
    return out
