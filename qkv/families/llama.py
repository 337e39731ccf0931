"""LLaMA 1 to 3.x (arXiv 2302.13971, 2307.09288, 2407.21783), and the many models built like it (SmolLM, TinyLlama)."""

from typing import Any

from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Family, Gguf, Row
from qkv.families.gguf import llama_config
from qkv.families.rope import read_rotary, write_rotary
from qkv.spec import RMS, Attention, Block, Causal, Gated, LMHead, Model, Stack


def read(config: Reader) -> Model:
    dim, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    context = config.whole("max_position_embeddings", default=2048)
    head_dim = config.whole("head_dim", default=None) or dim // heads
    bias = config.flag("attention_bias", default=False)
    norm = RMS(config.number("rms_norm_eps", default=1e-6))
    mixer = Attention(
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", default=None) or heads,
        head_dim=None if head_dim * heads == dim else head_dim,
        position=read_rotary(config, head_dim, context),
        mask=Causal(),
        qkv_bias=bias,
        out_bias=bias,
        dropout=config.number("attention_dropout", default=0.0, high=1.0),
    )
    mlp = Gated(
        config.whole("intermediate_size"),
        config.choice("hidden_act", options=ACTIVATIONS, default="silu"),
        bias=config.flag("mlp_bias", default=False),
    )
    return Model(
        vocab=config.whole("vocab_size"),
        dim=dim,
        decoder=Stack((Block(mixer, mlp, norm),), layers=config.whole("num_hidden_layers"), norm=norm),
        head=LMHead(tied=config.flag("tie_word_embeddings", default=False)),
        context=context,
        family="llama",
    )


def write(model: Model) -> dict[str, Any]:
    block = model.decoder.blocks[0]
    mixer, mlp = block.mixer, block.mlp
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "num_hidden_layers": model.decoder.layers,
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.kv_heads,
        "head_dim": mixer.head_width(model.dim),
        "intermediate_size": mlp.width,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": model.context,
        "rms_norm_eps": block.norm.eps,
        "attention_bias": mixer.qkv_bias,
        "attention_dropout": mixer.dropout,
        "mlp_bias": mlp.bias,
        "tie_word_embeddings": model.head.tied,
        **write_rotary(mixer.position, mixer.head_width(model.dim), model.context),
    }


LAYER = "model.layers.{i}."
BLOCK = "decoder.blocks.{i}."
WEIGHTS = (
    Row("model.embed_tokens.weight", "decoder.embed.tokens.weight"),
    Row(LAYER + "input_layernorm.weight", BLOCK + "mixer_norm.weight"),
    Row(LAYER + "self_attn.q_proj.weight", BLOCK + "mixer.q.weight"),
    Row(LAYER + "self_attn.q_proj.bias", BLOCK + "mixer.q.bias"),
    Row(LAYER + "self_attn.k_proj.weight", BLOCK + "mixer.k.weight"),
    Row(LAYER + "self_attn.k_proj.bias", BLOCK + "mixer.k.bias"),
    Row(LAYER + "self_attn.v_proj.weight", BLOCK + "mixer.v.weight"),
    Row(LAYER + "self_attn.v_proj.bias", BLOCK + "mixer.v.bias"),
    Row(LAYER + "self_attn.o_proj.weight", BLOCK + "mixer.out.weight"),
    Row(LAYER + "self_attn.o_proj.bias", BLOCK + "mixer.out.bias"),
    Row(LAYER + "post_attention_layernorm.weight", BLOCK + "mlp_norm.weight"),
    Row(LAYER + "mlp.gate_proj.weight", BLOCK + "mlp.gate.weight"),
    Row(LAYER + "mlp.gate_proj.bias", BLOCK + "mlp.gate.bias"),
    Row(LAYER + "mlp.up_proj.weight", BLOCK + "mlp.up.weight"),
    Row(LAYER + "mlp.up_proj.bias", BLOCK + "mlp.up.bias"),
    Row(LAYER + "mlp.down_proj.weight", BLOCK + "mlp.down.weight"),
    Row(LAYER + "mlp.down_proj.bias", BLOCK + "mlp.down.bias"),
    Row("model.norm.weight", "decoder.norm.weight"),
    Row("lm_head.weight", "head.weight"),
)

FAMILY = Family(
    name="llama",
    title="LLaMA 1–3, SmolLM2, TinyLlama",
    architecture="LlamaForCausalLM",
    read=read,
    write=write,
    weights=WEIGHTS,
    ignored=(LAYER + "self_attn.rotary_emb.inv_freq",),
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
        "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 24},
        "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        "llama3": {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    },
    gguf=Gguf(
        arch="llama",
        config=llama_config,
        via={"blk.{i}.attn_q.weight": ("ggml_rotary",), "blk.{i}.attn_k.weight": ("ggml_rotary",)},
    ),
)
