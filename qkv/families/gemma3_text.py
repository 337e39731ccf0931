"""Gemma 3's language model (arXiv 2503.19786): five layers with a window and a base of their own to each that sees all,
and norms on q and k in place of the soft cap."""

from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Gguf
from qkv.families.gemma import NORMS, scaled
from qkv.families.gemma2 import read_block, read_scale, write_scale, write_windows
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
    read_model,
    read_rms,
    sliding,
    softcap_of,
    write_model,
)
from qkv.families.rope import rotary, write_scaling
from qkv.spec import Attention, Model, Rotary, Window


def read(config: Reader) -> Model:
    config.only("attn_logit_softcapping", None)  # transformers reads it and uses it nowhere
    context = read_context(config, 131072)
    types = layer_types(config, _every_sixth(config))
    local, everywhere = read_bases(config, config.whole("head_dim", default=256), context)
    mixer = read_attention(config, context, kv_heads=4, head_dim=256, position=everywhere)
    mixer = replace(mixer, scale=read_scale(config, mixer), qk_norm=read_rms(config, one_plus=True))
    near = replace(mixer, position=local, mask=Window(sliding(config, types, 4096)))
    full = read_block(config, mixer)
    softcap = config.number("final_logit_softcapping", default=None)
    blocks = by_type(types, replace(full, mixer=near), full)
    return read_model(config, blocks, context, tied=True, embed=scaled(config), softcap=softcap)


def _every_sixth(config: Reader) -> list[str]:
    """Where `layer_types` doesn't say: all slide but each sixth."""
    period = config.whole("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return [SLIDING if (i + 1) % period else FULL for i in range(config.layers("num_hidden_layers"))]


def read_bases(config: Reader, head_dim: int, context: int) -> tuple[Rotary, Rotary]:
    """The positions of sliding and of full layers. Older configs say two bases, and a scaling for full layers alone."""
    near: dict[str, Any] = {"rope_theta": config.number("rope_local_base_freq", default=1e4, low=1.0)}
    far: dict[str, Any] = {"rope_theta": config.number("rope_theta", default=1e6, low=1.0)}
    settings = config.section("rope_parameters", allowed=(SLIDING, FULL))
    near |= settings.section(SLIDING).config
    far |= settings.section(FULL).config
    far |= config.section("rope_scaling").config
    local, everywhere = (rotary(r, config.where, head_dim, context) for r in (near, far))
    if local.scaling is not None:
        raise config.wrong("rope_parameters", f"scales {SLIDING}, where only {FULL} may be")
    return local, everywhere


def write(model: Model) -> dict[str, Any]:
    mixers = [must_be(block.mixer, Attention, model) for block in model.last.blocks]
    rope: dict[str, Any] = {"rope_theta": 1e6, "rope_scaling": None}
    for mixer in mixers:
        position = must_be(mixer.position, Rotary, model)
        if isinstance(mixer.mask, Window):
            rope["rope_local_base_freq"] = position.base
        else:
            rope |= {"rope_theta": position.base, "rope_scaling": write_scaling(position)}
    return {
        **write_model(model, activation="hidden_activation"),
        **write_windows(model),
        **rope,
        "query_pre_attn_scalar": write_scale(model, mixers[0]),
        "final_logit_softcapping": softcap_of(model),
    }


def gguf_config(metadata: Reader) -> dict[str, Any]:
    """llama.cpp keeps neither scale (27B, with 62 layers: 1/√(dim/heads)) nor, in older files, pattern and local base.
    A file without a window slides nowhere."""
    shared = llama_config(metadata)
    width = shared["hidden_size"] // shared["num_attention_heads"]
    window = metadata.whole("attention.sliding_window", default=None)
    return {
        **shared,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": width if shared["num_hidden_layers"] == 62 else shared["head_dim"],
        "sliding_window": window,
        "sliding_window_pattern": metadata.whole("attention.sliding_window_pattern", default=6) if window else 1,
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", default=10000.0, low=1.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", default=None),
    }


FAMILY = Family(
    name="gemma3_text",
    title="Gemma 3",
    architectures=decoders("Gemma3Text", lm="Gemma3ForCausalLM", tags=None),
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
        "layer_types": [SLIDING, SLIDING, FULL],
    },
    variants={
        "of its release": {
            "layer_types": None,
            "sliding_window_pattern": 2,
            "rope_theta": 50000.0,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "of transformers 5": {
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 700.0},
                FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 7000.0},
            }
        },
        "all slide": {"layer_types": None},
        "none slides": {"layer_types": [FULL, FULL, FULL]},
        "scale": {"query_pre_attn_scalar": 168},
        "cap": {"final_logit_softcapping": 3.0},
        "multi-query": {"num_key_value_heads": 1},
        "untied": {"tie_word_embeddings": False},
        "biases": {"attention_bias": True},
    },
    gguf=Gguf(arch="gemma3", config=gguf_config, weights=table(NORMS)),
)
