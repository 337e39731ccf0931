"""GPT-NeoX and Pythia (arXiv 2204.06745, 2304.01373): a part of each head turned, attention and MLP side by side."""

from typing import Any

from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Family, Row, pair
from qkv.families.heads import decoders
from qkv.families.layers import BLOCK, divided, must_be
from qkv.families.rope import read_rotary, write_rotary
from qkv.spec import Attention, Block, Causal, Embed, LayerNorm, LMHead, Model, Place, Plain, Stack


def read(config: Reader) -> Model:
    for key in ("attention_probs_dropout_prob", "hidden_dropout_prob"):  # GPT-NeoX-20B's, which nothing reads
        config.only(key, 0)
    dim, heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    width, context = divided(config, dim, heads), config.whole("max_position_embeddings", default=2048)
    bias = config.flag("attention_bias", default=True)
    dropout = config.number("hidden_dropout", default=0.0, high=1.0)
    norm = LayerNorm(config.number("layer_norm_eps", default=1e-5))
    mixer = Attention(
        heads=heads,
        kv_heads=heads,
        position=read_rotary(config, width, context, theta="rotary_emb_base", part="rotary_pct", turned=0.25),
        mask=Causal(),
        qkv_bias=bias,
        out_bias=bias,
        dropout=config.number("attention_dropout", default=0.0, high=1.0),
    )
    mlp = Plain(
        config.whole("intermediate_size"),
        config.choice("hidden_act", options=ACTIVATIONS, default="gelu"),
        bias=True,
    )
    place: Place = "parallel" if config.flag("use_parallel_residual", default=True) else "pre"
    return Model(
        vocab=config.whole("vocab_size"),
        dim=dim,
        decoder=Stack(
            (Block(mixer, mlp, norm, place=place, dropout=dropout),),
            layers=config.layers("num_hidden_layers"),
            norm=norm,
            embed=Embed(dropout=dropout),
        ),
        head=LMHead(tied=config.flag("tie_word_embeddings", default=False)),
        context=context,
    )


def write(model: Model) -> dict[str, Any]:
    block = model.last.blocks[0]
    mixer, mlp = must_be(block.mixer, Attention, model), must_be(block.mlp, Plain, model)
    return {
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "num_hidden_layers": model.last.layers,
        "num_attention_heads": mixer.heads,
        "intermediate_size": mlp.width,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "max_position_embeddings": model.context,
        "layer_norm_eps": block.norm.eps,
        "attention_bias": mixer.qkv_bias,
        "attention_dropout": mixer.dropout,
        "hidden_dropout": block.dropout,
        "use_parallel_residual": block.place == "parallel",
        **write_rotary(mixer.position, mixer.head_width(model.dim), theta="rotary_emb_base", part="rotary_pct"),
    }


LAYER = "gpt_neox.layers.{i}."
QKV = (BLOCK + "mixer.q", BLOCK + "mixer.k", BLOCK + "mixer.v")
WEIGHTS = (
    Row("gpt_neox.embed_in.weight", "decoder.embed.tokens.weight"),
    *pair(LAYER + "input_layernorm", BLOCK + "mixer_norm"),
    *pair(LAYER + "attention.query_key_value", QKV, via=("by_group",)),
    *pair(LAYER + "attention.dense", BLOCK + "mixer.out"),
    *pair(LAYER + "post_attention_layernorm", BLOCK + "mlp_norm"),
    *pair(LAYER + "mlp.dense_h_to_4h", BLOCK + "mlp.up"),
    *pair(LAYER + "mlp.dense_4h_to_h", BLOCK + "mlp.down"),
    *pair("gpt_neox.final_layer_norm", "decoder.norm"),
)

FAMILY = Family(
    name="gpt_neox",
    title="GPT-NeoX, Pythia",
    architectures=decoders("GPTNeoX", lm_head="embed_out", tags="classifier"),
    read=read,
    write=write,
    weights=WEIGHTS,
    ignored=(LAYER + "attention.bias", LAYER + "attention.masked_bias", LAYER + "attention.rotary_emb.inv_freq"),
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    prefix="gpt_neox.",
    tiny={
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    },
    variants={
        "sequential": {"use_parallel_residual": False},
        "tied": {"tie_word_embeddings": True},
        "all of the head": {"rotary_pct": 1.0, "rotary_emb_base": 5000},
        "no biases": {"attention_bias": False},
        "gelu_fast": {"hidden_act": "gelu_fast"},
        "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "dynamic": {
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "max_position_embeddings": 24,
            "rotary_pct": 0.5,
        },
        "of transformers 5": {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
        },
    },
)
