"""BLOOM (arXiv 2211.05100): no positions but ALiBi's slopes, and a norm right after the embedding."""

from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Row, pair
from qkv.families.heads import decoders, dropout_of
from qkv.families.layers import BLOCK, must_be
from qkv.spec import Alibi, Attention, Block, Causal, Embed, LayerNorm, LMHead, Model, Plain, Stack

# Of Megatron's kernels, and how far ALiBi's unused offset was.
MEGATRON = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "offset_alibi",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "slow_but_exact",
)


def read(config: Reader) -> Model:
    config.ignore(*MEGATRON)
    config.only("apply_residual_connection_post_layernorm", False)
    dim, heads = config.whole("hidden_size", "n_embed"), config.whole("n_head", "num_attention_heads")
    config.only("n_inner", None, 4 * dim)
    norm = LayerNorm(config.number("layer_norm_epsilon", default=1e-5))
    mixer = Attention(
        heads=heads,
        kv_heads=heads,
        position=Alibi(),
        mask=Causal(),
        qkv_bias=True,
        out_bias=True,
        dropout=config.number("attention_dropout", default=0.0, high=1.0),
    )
    dropout = config.number("hidden_dropout", default=0.0, high=1.0)
    return Model(
        vocab=config.whole("vocab_size"),
        dim=dim,
        decoder=Stack(
            (Block(mixer, Plain(4 * dim, "gelu_tanh", bias=True), norm, dropout=dropout),),
            layers=config.layers("n_layer", "num_hidden_layers"),
            norm=norm,
            embed=Embed(norm=norm),
        ),
        head=LMHead(tied=config.flag("tie_word_embeddings", default=True)),
        context=config.whole("seq_length", default=None),
    )


def write(model: Model) -> dict[str, Any]:
    block = model.last.blocks[0]
    mixer = must_be(block.mixer, Attention, model)
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "n_layer": model.last.layers,
        "n_head": mixer.heads,
        "layer_norm_epsilon": block.norm.eps,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": block.dropout,
        **({} if model.context is None else {"seq_length": model.context}),
    }


LAYER = "transformer.h.{i}."
QKV = (BLOCK + "mixer.q", BLOCK + "mixer.k", BLOCK + "mixer.v")
WEIGHTS = (
    Row("transformer.word_embeddings.weight", "decoder.embed.tokens.weight"),
    *pair("transformer.word_embeddings_layernorm", "decoder.embed.norm"),
    *pair(LAYER + "input_layernorm", BLOCK + "mixer_norm"),
    *pair(LAYER + "self_attention.query_key_value", QKV, via=("by_group",)),
    *pair(LAYER + "self_attention.dense", BLOCK + "mixer.out"),
    *pair(LAYER + "post_attention_layernorm", BLOCK + "mlp_norm"),
    *pair(LAYER + "mlp.dense_h_to_4h", BLOCK + "mlp.up"),
    *pair(LAYER + "mlp.dense_4h_to_h", BLOCK + "mlp.down"),
    *pair("transformer.ln_f", "decoder.norm"),
)

TAG_DROPOUT = dropout_of("classifier_dropout", "hidden_dropout", default=0.0)

FAMILY = Family(
    name="bloom",
    title="BLOOM",
    architectures=decoders("Bloom", tags="classifier", dropout=TAG_DROPOUT),
    read=read,
    write=write,
    weights=WEIGHTS,
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.word_embeddings.weight"},
    tiny={"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    variants={
        "untied": {"tie_word_embeddings": False},
        "heads not a power of two": {"hidden_size": 36, "n_head": 6},
        "one head": {"n_head": 1},
        "tags, their dropout": {"architectures": ["BloomForTokenClassification"], "classifier_dropout": 0.3},
        "tags, the blocks' dropout": {"architectures": ["BloomForTokenClassification"], "hidden_dropout": 0.2},
        "of its release": {"n_embed": 32, "seq_length": 64, "offset_alibi": 100, "n_inner": None, "pretraining_tp": 2},
    },
)
