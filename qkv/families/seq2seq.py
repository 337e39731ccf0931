"""What encoder–decoder families share: how a config says that there are two stacks, and all that is built like BART."""

from dataclasses import dataclass, replace
from typing import Any

from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Architecture, Row, pair
from qkv.families.heads import classify, dropout_of, say_dropout, span, states
from qkv.families.layers import must_be, read_context
from qkv.spec import (
    Attention,
    Block,
    Causal,
    Classify,
    Embed,
    Full,
    LayerNorm,
    Learned,
    LMHead,
    Model,
    Place,
    Plain,
    Sinusoidal,
    Span,
    Stack,
    States,
)


def both_stacks(config: Reader, *encoders: str) -> None:
    """`is_encoder_decoder`, which may be false only for an architecture that is an encoder alone, one of `encoders`."""
    alone = config.config.get("architectures") in [[name] for name in encoders]
    config.only("is_encoder_decoder", True, *([False] if alone else []))


@dataclass(frozen=True)
class Layout:
    """In what the families built like BART differ. `learned`: positions are (else sinusoidal); `place` of the norms,
    "pre" having one more at the end of each stack; `normed`: the embedding has a norm too; `start`: the decoder's first
    token where the config says none."""

    learned: bool
    place: Place
    normed: bool
    start: int | None


# --- BART's config keys ---------------------------------------------------------------------------------------------

# What is only for training (layers dropped at random, a dropout of old), for generation, or how a file came about.
_UNUSED = (
    *("encoder_layerdrop", "decoder_layerdrop", "init_std", "classif_dropout", "force_bos_token_to_be_generated"),
    *("output_past", "replacing_rate", "student_encoder_layers", "student_decoder_layers", "save_step", "_num_labels"),
    "extra_pos_embeddings",
)
_NORM = LayerNorm(1e-5)  # torch's default: no config says it


def read_like_bart(config: Reader, layout: Layout) -> Model:
    """Two stacks of BART's layers with one table, to which the head is tied."""
    both_stacks(config)
    _say_the_same(config, layout)
    config.ignore(*_UNUSED)
    dim = config.whole("d_model", "hidden_size")
    length = read_context(config, 1024)
    embed = Embed(
        position=Learned(length, offset=2) if layout.learned else Sinusoidal(halves=True),
        scale=dim**0.5 if config.flag("scale_embedding", default=False) else 1.0,
        norm=_NORM if layout.normed else None,
        dropout=config.number("dropout", default=0.1, high=1.0),
    )
    encoder = _stack(config, "encoder", layout, embed, ("num_attention_heads",), ("num_hidden_layers",))
    decoder = _stack(config, "decoder", layout, embed)
    return Model(
        vocab=config.whole("vocab_size"),
        dim=dim,
        encoder=encoder,
        decoder=replace(decoder, blocks=tuple(map(_crossing, decoder.blocks))),
        head=LMHead(tied=True, bias=True),
        context=length,
        start=config.whole("decoder_start_token_id", default=layout.start, low=0),
    )


def _say_the_same(config: Reader, layout: Layout) -> None:
    """Old configs said in five flags what is now said by the name of the family."""
    config.only("add_bias_logits", False)
    config.only("add_final_layer_norm", layout.place == "pre")
    config.only("normalize_before", layout.place == "pre")
    config.only("normalize_embedding", layout.normed)
    config.only("static_position_embeddings", not layout.learned)


def _stack(
    config: Reader,
    side: str,
    layout: Layout,
    embed: Embed,
    heads: tuple[str, ...] = (),
    layers: tuple[str, ...] = (),
) -> Stack:
    """One side's keys. `heads` and `layers`: what these are also called."""
    count = config.whole(f"{side}_attention_heads", *heads)
    mixer = Attention(
        heads=count,
        kv_heads=count,
        mask=Full(),
        qkv_bias=True,
        out_bias=True,
        dropout=config.number("attention_dropout", default=0.0, high=1.0),
    )
    mlp = Plain(
        config.whole(f"{side}_ffn_dim"),
        config.choice("activation_function", options=ACTIVATIONS, default="gelu"),
        bias=True,
        dropout=config.number("activation_dropout", default=0.0, high=1.0),
    )
    block = Block(mixer, mlp, _NORM, layout.place, dropout=embed.dropout)
    last = _NORM if layout.place == "pre" else None
    return Stack((block,), config.layers(f"{side}_layers", *layers), norm=last, embed=embed)


def _crossing(block: Block) -> Block:
    """A decoder's: it sees what came before, and all of the encoder's states."""
    mixer = block.mixer
    assert isinstance(mixer, Attention)
    return replace(block, mixer=replace(mixer, mask=Causal()), cross=mixer)


def write_like_bart(model: Model) -> dict[str, Any]:
    """The same, undone."""
    encoder, decoder = must_be(model.encoder, Stack, model), must_be(model.decoder, Stack, model)
    block, embed = encoder.blocks[0], encoder.embed
    return {
        "is_encoder_decoder": True,
        "vocab_size": model.vocab,
        "d_model": model.dim,
        **_write_stack(model, "encoder", encoder),
        **_write_stack(model, "decoder", decoder),
        "max_position_embeddings": embed.position.length if isinstance(embed.position, Learned) else model.context,
        "activation_function": ACTIVATION_NAMES[block.mlp.activation],
        "scale_embedding": embed.scale != 1.0,
        "dropout": block.dropout,
        "attention_dropout": must_be(block.mixer, Attention, model).dropout,
        "activation_dropout": block.mlp.dropout,
        **({} if model.start is None else {"decoder_start_token_id": model.start}),
    }


def _write_stack(model: Model, side: str, stack: Stack) -> dict[str, Any]:
    block = stack.blocks[0]
    return {
        f"{side}_layers": stack.layers,
        f"{side}_attention_heads": must_be(block.mixer, Attention, model).heads,
        f"{side}_ffn_dim": must_be(block.mlp, Plain, model).width,
    }


# --- BART's tensor names --------------------------------------------------------------------------------------------

SHARED = "model.shared.weight"
COPIES = {f"model.{side}.embed_tokens.weight": SHARED for side in ("encoder", "decoder")}

# Positions that are computed here are stored in old checkpoints, and in those of transformers 5.
SINES = tuple(f"{prefix}{side}.embed_positions.weight" for prefix in ("", "model.") for side in ("encoder", "decoder"))


def rows(layout: Layout) -> tuple[Row, ...]:
    """The table of BART's names."""
    return (Row(SHARED, "encoder.embed.tokens.weight"), *stack_rows("encoder", layout), *stack_rows("decoder", layout))


def stack_rows(side: str, layout: Layout) -> tuple[Row, ...]:
    """One side's, but for its token vectors."""
    stack, layer, block = f"model.{side}.", f"model.{side}.layers.{{i}}.", f"{side}.blocks.{{i}}."
    cross = (
        *_attention(f"{layer}encoder_attn", f"{block}cross"),
        *pair(f"{layer}encoder_attn_layer_norm", f"{block}cross_norm"),
    )
    position = (Row(f"{stack}embed_positions.weight", f"{side}.embed.position.weight"),)
    return (
        *(position if layout.learned else ()),
        *(pair(f"{stack}layernorm_embedding", f"{side}.embed.norm") if layout.normed else ()),
        *_attention(f"{layer}self_attn", f"{block}mixer"),
        *pair(f"{layer}self_attn_layer_norm", f"{block}mixer_norm"),
        *(cross if side == "decoder" else ()),
        *pair(f"{layer}fc1", f"{block}mlp.up"),
        *pair(f"{layer}fc2", f"{block}mlp.down"),
        *pair(f"{layer}final_layer_norm", f"{block}mlp_norm"),
        *(pair(f"{stack}layer_norm", f"{side}.norm") if layout.place == "pre" else ()),
    )


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    return tuple(row for part in ("q", "k", "v", "out") for row in pair(f"{theirs}.{part}_proj", f"{ours}.{part}"))


# --- BART's kinds of checkpoints ------------------------------------------------------------------------------------

BIAS = Row("final_logits_bias", "head.bias", ("row",))


def text_to_text(name: str, *rows: Row) -> Architecture:
    """The language model. `rows`: of its head beside the bias."""
    return Architecture(name, LMHead, rows=(BIAS, *rows))


def bare(name: str) -> Architecture:
    """The states."""
    return Architecture(name, States, states(), bare=True)


def classifier(name: str, labels: int) -> Architecture:
    """The score of a text, from the decoder's state where the text ends. `labels`: where the config names none."""
    dense, out = pair("classification_head.dense", "head.hidden"), pair("classification_head.out_proj", "head.out")
    read = classify(dropout=dropout_of("classifier_dropout", default=0.0), pick="last", hidden="tanh", labels=labels)
    return Architecture(name, Classify, read, rows=(*dense, *out), write=say_dropout)


def answerer(name: str) -> Architecture:
    """An answer's first and last token."""
    return Architecture(name, Span, span(), rows=pair("qa_outputs", "head.out"))


TINY = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "scaled": {"scale_embedding": True},
    "relu": {"activation_function": "relu"},
    "a shallow decoder": {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 40},
    "dropouts": {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.4},
}
