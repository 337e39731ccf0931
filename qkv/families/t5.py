"""T5 (arXiv 1910.10683): encoder and decoder before whose parts RMS norms stand, a trained bias for each bucket of
distance that all layers of a stack share, scores without a scale, no bias on any matrix. v1.1 and FLAN: a gated GELU,
and a head of its own.

T5 also trains with dropout on the states after each stack's last norm; that one is not here."""

from dataclasses import replace
from typing import Any

from qkv.errors import ConfigError
from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Architecture, Config, Family, Row, pair
from qkv.families.heads import classify, dropout_of, say_dropout, span, states, tag
from qkv.families.layers import must_be
from qkv.families.seq2seq import both_stacks
from qkv.spec import (
    MLP,
    RMS,
    Attention,
    Block,
    Causal,
    Classify,
    Embed,
    Full,
    Gated,
    Head,
    LMHead,
    Model,
    Plain,
    RelativeBias,
    Span,
    Stack,
    States,
    Tag,
)

GATED = {f"gated-{name}": activation for name, activation in ACTIVATIONS.items()}
GATED["gated-gelu"] = "gelu_tanh"  # transformers reads these words as GELU's tanh approximation, which v1.1 has


def read(config: Reader) -> Model:
    model = read_like_t5(config, "T5", projection="relu")
    tied = config.flag("tie_word_embeddings", default=True)
    scaled = config.flag("scale_decoder_outputs", default=tied)
    return replace(model, head=LMHead(tied=tied, scale=model.dim**-0.5 if scaled else 1.0))


def read_like_t5(config: Reader, stem: str, *, projection: str) -> Model:
    """What T5 and mT5 share: all but the head. `projection`: the MLP where the config doesn't say."""
    both_stacks(config, f"{stem}EncoderModel", f"{stem}ForTokenClassification")
    config.ignore("initializer_factor", "output_past")
    dim, heads = config.whole("d_model", "hidden_size"), config.whole("num_heads", "num_attention_heads")
    width = config.whole("d_kv", "head_dim", default=64)
    dropout = config.number("dropout_rate", default=0.1, high=1.0)
    mixer = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=None if width * heads == dim else width,
        mask=Full(),
        scale=1.0,
        dropout=dropout,
    )
    norm = RMS(config.number("layer_norm_epsilon", default=1e-6))
    block = Block(mixer, _mlp(config, projection, dropout), norm, dropout=dropout)
    position = RelativeBias(
        config.whole("relative_attention_num_buckets", default=32),
        config.whole("relative_attention_max_distance", default=128),
        both_ways=True,
    )
    layers = config.layers("num_layers", "num_hidden_layers")
    encoder = Stack((block,), layers, norm=norm, embed=Embed(dropout=dropout), position=position)
    crossing = replace(block, mixer=replace(mixer, mask=Causal()), cross=mixer)
    depth = config.whole("num_decoder_layers", default=layers, high=4096)
    return Model(
        vocab=config.whole("vocab_size"),
        dim=dim,
        encoder=encoder,
        decoder=replace(encoder, blocks=(crossing,), layers=depth, position=replace(position, both_ways=False)),
        context=config.whole("n_positions", default=None),
        start=config.whole("decoder_start_token_id", default=None, low=0),
    )


def _mlp(config: Reader, projection: str, dropout: float) -> MLP:
    """`feed_forward_proj`, and what newer configs say of it once more."""
    said = config.get("feed_forward_proj", default=projection)
    kind, options = (Gated, GATED) if str(said).startswith("gated-") else (Plain, ACTIVATIONS)
    activation = config.choice("feed_forward_proj", options=options, default=projection)
    config.only("is_gated_act", kind is Gated)
    if config.choice("dense_act_fn", options=ACTIVATIONS, default=ACTIVATION_NAMES[activation]) != activation:
        raise config.wrong("dense_act_fn", f"is {config.get('dense_act_fn')!r}, but feed_forward_proj says {said!r}")
    return kind(config.whole("d_ff"), activation, dropout=dropout)


def write(model: Model) -> dict[str, Any]:
    encoder, block = model.stacks[0], model.stacks[0].blocks[0]
    mixer, norm = must_be(block.mixer, Attention, model), must_be(block.norm, RMS, model)
    position = must_be(encoder.position, RelativeBias, model)
    return {
        "is_encoder_decoder": True,  # so too of an encoder alone: transformers sets it there
        "vocab_size": model.vocab,
        "d_model": model.dim,
        "d_kv": mixer.head_width(model.dim),
        "d_ff": block.mlp.width,
        "feed_forward_proj": _projection(block.mlp),
        "num_layers": encoder.layers,
        "num_decoder_layers": model.last.layers,
        "num_heads": mixer.heads,
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.distance,
        "dropout_rate": block.dropout,
        "layer_norm_epsilon": norm.eps,
        **({} if model.context is None else {"n_positions": model.context}),
        **({} if model.start is None else {"decoder_start_token_id": model.start}),
    }


def _projection(mlp: MLP) -> str:
    """The words that transformers has for an MLP. ConfigError: it has none."""
    name = ACTIVATION_NAMES[mlp.activation]
    if not isinstance(mlp, Gated):
        return name
    if mlp.activation == "gelu":
        raise ConfigError("a T5 config can't say a gated gelu: its 'gated-gelu' is gelu_tanh")
    return f"gated-{'gelu' if mlp.activation == 'gelu_tanh' else name}"


def say_scale(head: Head) -> Config:
    """`scale_decoder_outputs`."""
    return {"scale_decoder_outputs": head.scale != 1.0} if isinstance(head, LMHead) else {}


SHARED = "transformer.shared.weight"


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    parts = {"q": "q", "k": "k", "v": "v", "o": "out"}
    return tuple(Row(f"{theirs}.{a}.weight", f"{ours}.{b}.weight") for a, b in parts.items())


def _stack(name: str, crossing: bool) -> tuple[Row, ...]:
    """The rows of the encoder or the decoder."""
    layer, block = f"transformer.{name}.block.{{i}}.layer.", f"{name}.blocks.{{i}}."
    last = 1 + crossing
    cross = (
        *_attention(f"{layer}1.EncDecAttention", f"{block}cross"),
        Row(f"{layer}1.layer_norm.weight", f"{block}cross_norm.weight"),
    )
    return (
        *_attention(f"{layer}0.SelfAttention", f"{block}mixer"),
        Row(f"{layer}0.layer_norm.weight", f"{block}mixer_norm.weight"),
        *(cross if crossing else ()),
        Row(f"{layer}{last}.DenseReluDense.wi.weight", f"{block}mlp.up.weight", without=f"{block}mlp.gate.weight"),
        Row(f"{layer}{last}.DenseReluDense.wi_0.weight", f"{block}mlp.gate.weight"),
        Row(f"{layer}{last}.DenseReluDense.wi_1.weight", f"{block}mlp.up.weight", beside=f"{block}mlp.gate.weight"),
        Row(f"{layer}{last}.DenseReluDense.wo.weight", f"{block}mlp.down.weight"),
        Row(f"{layer}{last}.layer_norm.weight", f"{block}mlp_norm.weight"),
        Row(
            f"transformer.{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{name}.position.weight",
        ),
        Row(f"transformer.{name}.final_layer_norm.weight", f"{name}.norm.weight"),
    )


ROWS = (Row(SHARED, "encoder.embed.tokens.weight"), *_stack("encoder", False), *_stack("decoder", True))
COPIES = {f"transformer.{name}.embed_tokens.weight": SHARED for name in ("encoder", "decoder")}
# In checkpoints of old: a bias of cross-attention that no layer has ever read.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def architectures(stem: str) -> tuple[Architecture, ...]:
    """The checkpoints of T5 and mT5. Those with a bare name have no "transformer." before theirs."""
    dropout = dropout_of("classifier_dropout", default=0.0)
    return (
        Architecture(
            f"{stem}ForConditionalGeneration",
            LMHead,
            rows=(Row("lm_head.weight", "head.weight"),),
            write=say_scale if stem == "T5" else lambda head: {},
            bare=True,
        ),
        Architecture(
            f"{stem}ForSequenceClassification",
            Classify,
            classify(dropout=dropout, pick="last", hidden="tanh"),
            rows=(*pair("classification_head.dense", "head.hidden"), *pair("classification_head.out_proj", "head.out")),
            write=say_dropout,
        ),
        Architecture(
            f"{stem}ForTokenClassification",
            Tag,
            tag(dropout=dropout),
            rows=pair("classifier", "head.out"),
            write=say_dropout,
            only="encoder",
        ),
        Architecture(f"{stem}ForQuestionAnswering", Span, span(), rows=pair("qa_outputs", "head.out"), bare=True),
        Architecture(f"{stem}Model", States, states(), bare=True),
        Architecture(f"{stem}EncoderModel", States, states(), bare=True, only="encoder"),
    )


TINY = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
VARIANTS: dict[str, Config] = {
    "gated": {"feed_forward_proj": "gated-silu"},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "a deeper decoder": {"num_decoder_layers": 3},
    "narrow heads": {"d_kv": 4},
    "wide heads": {"d_kv": 16},
    "trained buckets": {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128},
    "norm eps": {"layer_norm_epsilon": 1e-3},
    "one score": {"architectures": ["T5ForSequenceClassification"], "num_labels": 1},
    "several labels": {
        "architectures": ["T5ForSequenceClassification"],
        "problem_type": "multi_label_classification",
        "id2label": {"0": "old", "1": "new", "2": "borrowed"},
    },
}

FAMILY = Family(
    name="t5",
    title="T5, T5 v1.1, FLAN-T5",
    architectures=architectures("T5"),
    read=read,
    write=write,
    weights=ROWS,
    prefix="transformer.",
    copies={**COPIES, "lm_head.weight": SHARED},
    ignored=(UNUSED, f"transformer.{UNUSED}"),
    tiny=TINY,
    variants=VARIANTS,
)
