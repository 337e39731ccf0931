"""GPT-BigCode: SantaCoder and StarCoder (arXiv 2301.03988, 2305.06161): GPT-2 with multi-query attention."""

from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family
from qkv.families.gpt2 import LAYER, SUMMARY, read_like_gpt2, rows, write_like_gpt2
from qkv.families.heads import decoders
from qkv.families.layers import must_be
from qkv.spec import Attention, Model

RUNTIME = (
    "inference_runner",
    "max_batch_size",
    "max_sequence_length",
    "pad_key_length",
    "pre_allocate_kv_cache",
    "validate_runner_input",
)


def read(config: Reader) -> Model:
    # Softmax is in float32 here whatever these say, and the scaling before it is the same number.
    config.ignore("n_ctx", "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", *RUNTIME, *SUMMARY)
    kv_heads = 1 if config.flag("multi_query", default=True) else config.whole("n_head", "num_attention_heads")
    config.only("num_key_value_heads", kv_heads)
    return read_like_gpt2(config, kv_heads=kv_heads, activation="gelu_pytorch_tanh")


def write(model: Model) -> dict[str, Any]:
    mixer = must_be(model.last.blocks[0].mixer, Attention, model)
    return {**write_like_gpt2(model), "multi_query": mixer.kv_heads == 1}


FAMILY = Family(
    name="gpt_bigcode",
    title="SantaCoder, StarCoder",
    architectures=decoders("GPTBigCode", tags="classifier"),
    read=read,
    write=write,
    weights=rows(qkv=("by_group",), matrix=()),
    ignored=(LAYER + "attn.bias", LAYER + "attn.masked_bias"),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.wte.weight"},
    tiny={"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    variants={
        "multi-head": {"multi_query": False},
        "untied": {"tie_word_embeddings": False},
        "inner width": {"n_inner": 48},
        "gelu": {"activation_function": "gelu"},
        "unscaled": {"scale_attn_weights": False},
        "of its release": {"attention_softmax_in_fp32": False, "pad_key_length": True, "inference_runner": 0},
    },
)
