"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each part, GELU, the head tied to the embedding."""

from dataclasses import replace
from typing import Any

from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Family, Gguf, Row, pair
from qkv.families.gguf import single, table
from qkv.families.heads import decoders
from qkv.families.layers import BLOCK, must_be, pattern
from qkv.spec import Attention, Block, Causal, Embed, LayerNorm, Learned, LMHead, Model, Plain, Stack

SUMMARY = tuple(f"summary_{x}" for x in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"))


def read(config: Reader) -> Model:
    # Old configs say the mask's size (n_ctx); the upcast is to float32, where softmax is computed here in any case.
    config.ignore("n_ctx", "reorder_and_upcast_attn", *SUMMARY)
    model = read_like_gpt2(config, kv_heads=config.whole("n_head", "num_attention_heads"), activation="gelu_new")
    if not config.flag("scale_attn_by_inverse_layer_idx", default=False):
        return model
    blocks = [_scaled(block, 1 / (i + 1), model.dim) for i, block in enumerate(model.last)]
    return replace(model, decoder=replace(model.last, blocks=pattern(blocks)))


def _scaled(block: Block, factor: float, dim: int) -> Block:
    """A block whose scores are scaled once more."""
    mixer = block.mixer
    assert isinstance(mixer, Attention)
    scale = mixer.head_width(dim) ** -0.5 if mixer.scale is None else mixer.scale
    return replace(block, mixer=replace(mixer, scale=scale * factor)) if factor != 1 else block


def read_like_gpt2(config: Reader, *, kv_heads: int, activation: str) -> Model:
    """What GPT-2 and GPT-BigCode share."""
    dim = config.whole("n_embd", "hidden_size")
    length = config.whole("n_positions", "max_position_embeddings", default=1024)
    norm = LayerNorm(config.number("layer_norm_epsilon", default=1e-5))
    mixer = Attention(
        heads=config.whole("n_head", "num_attention_heads"),
        kv_heads=kv_heads,
        mask=Causal(),
        qkv_bias=True,
        out_bias=True,
        scale=None if config.flag("scale_attn_weights", default=True) else 1.0,
        dropout=config.number("attn_pdrop", default=0.1, high=1.0),
    )
    mlp = Plain(
        config.whole("n_inner", default=4 * dim),
        config.choice("activation_function", options=ACTIVATIONS, default=activation),
        bias=True,
    )
    return Model(
        vocab=config.whole("vocab_size"),
        dim=dim,
        decoder=Stack(
            (Block(mixer, mlp, norm, dropout=config.number("resid_pdrop", default=0.1, high=1.0)),),
            layers=config.layers("n_layer", "num_hidden_layers"),
            norm=norm,
            embed=Embed(position=Learned(length), dropout=config.number("embd_pdrop", default=0.1, high=1.0)),
        ),
        head=LMHead(tied=config.flag("tie_word_embeddings", default=True)),
        context=length,
    )


def write(model: Model) -> dict[str, Any]:
    scales = {must_be(block.mixer, Attention, model).scale for block in model.last.blocks}
    return {**write_like_gpt2(model), "scale_attn_by_inverse_layer_idx": len(scales) > 1}


def write_like_gpt2(model: Model) -> dict[str, Any]:
    """What GPT-2 and GPT-BigCode share."""
    block, embed = model.last.blocks[0], model.last.embed
    mixer, mlp = must_be(block.mixer, Attention, model), must_be(block.mlp, Plain, model)
    return {
        "vocab_size": model.vocab,
        "n_embd": model.dim,
        "n_layer": model.last.layers,
        "n_head": mixer.heads,
        "n_inner": mlp.width,
        "n_positions": must_be(embed.position, Learned, model).length,
        "activation_function": ACTIVATION_NAMES[mlp.activation],
        "layer_norm_epsilon": block.norm.eps,
        "scale_attn_weights": mixer.scale is None,
        "attn_pdrop": mixer.dropout,
        "resid_pdrop": block.dropout,
        "embd_pdrop": embed.dropout,
    }


LAYER = "transformer.h.{i}."
QKV = (BLOCK + "mixer.q", BLOCK + "mixer.k", BLOCK + "mixer.v")


def rows(qkv: tuple[str, ...], matrix: tuple[str, ...]) -> tuple[Row, ...]:
    """The table of GPT-2's names; how q, k and v lie in one tensor, and how each matrix lies."""

    def linear(theirs: str, ours: str | tuple[str, ...], via: tuple[str, ...] = ()) -> tuple[Row, Row]:
        weight, bias = pair(LAYER + theirs, ours, via)
        return replace(weight, via=(*matrix, *via)), bias

    return (
        Row("transformer.wte.weight", "decoder.embed.tokens.weight"),
        Row("transformer.wpe.weight", "decoder.embed.position.weight"),
        *pair(LAYER + "ln_1", BLOCK + "mixer_norm"),
        *linear("attn.c_attn", QKV, qkv),
        *linear("attn.c_proj", BLOCK + "mixer.out"),
        *pair(LAYER + "ln_2", BLOCK + "mlp_norm"),
        *linear("mlp.c_fc", BLOCK + "mlp.up"),
        *linear("mlp.c_proj", BLOCK + "mlp.down"),
        *pair("transformer.ln_f", "decoder.norm"),
    )


def gguf_config(metadata: Reader) -> dict[str, Any]:
    """llama.cpp's GPT-2 has no key for the activation: it is GELU's tanh approximation."""
    heads = metadata.whole("attention.head_count")
    metadata.only("attention.head_count_kv", heads)
    return {
        "n_embd": metadata.whole("embedding_length"),
        "n_head": heads,
        "n_layer": metadata.whole("block_count"),
        "n_inner": metadata.whole("feed_forward_length"),
        "n_positions": metadata.whole("context_length"),
        "layer_norm_epsilon": single(metadata.number("attention.layer_norm_epsilon")),
        "activation_function": "gelu_new",
    }


FAMILY = Family(
    name="gpt2",
    title="GPT-2",
    architectures=decoders("GPT2", lm="GPT2LMHeadModel", tags="classifier"),
    read=read,
    write=write,
    weights=rows(qkv=(), matrix=("transpose",)),  # its "Conv1D" keeps matrices as [in, out]
    ignored=(LAYER + "attn.bias", LAYER + "attn.masked_bias", "h.{i}.attn.bias", "h.{i}.attn.masked_bias"),
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.wte.weight"},
    tiny={"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    variants={
        "untied": {"tie_word_embeddings": False},
        "one head": {"n_head": 1},
        "inner width": {"n_inner": 48},
        "gelu": {"activation_function": "gelu"},
        "relu": {"activation_function": "relu"},
        "unscaled": {"scale_attn_weights": False},
        "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "n_layer": 3},
        "of its release": {"n_ctx": 64, "task_specific_params": {"text-generation": {"do_sample": True}}},
    },
    gguf=Gguf(arch="gpt2", config=gguf_config, weights=table(own=pair("blk.{i}.attn_qkv", QKV))),
)
