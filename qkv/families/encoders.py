"""What BERT and the encoders after it share: config keys, heads, the shape of their tensor tables."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from qkv.families.config import ACTIVATION_NAMES, ACTIVATIONS, Reader
from qkv.families.family import Architecture, Config, Row, pair
from qkv.families.heads import Read, dropout_of, say_dropout, span, states, tag
from qkv.families.layers import must_be
from qkv.spec import (
    Activation,
    Attention,
    Block,
    Embed,
    Full,
    Head,
    LayerNorm,
    Learned,
    MaskedLM,
    Model,
    Plain,
    RelativeBias,
    Span,
    Stack,
    States,
    Tag,
)

Names = Mapping[str, tuple[str, ...]]  # what BERT's keys are called in another family, the first when it is written

# BERT's two answers, in this order: does sentence B come after A? ALBERT's: are they in their order?
NEXT_SENTENCE: Final = ("IsNext", "NotNext")
SENTENCE_ORDER: Final = ("InOrder", "Swapped")


# What heads read (a matrix of their own, the number of labels), and a model's name and language.
ELSEWHERE: Final = ("tie_word_embeddings", "_num_labels", "output_past", "name", "language")


# --- config keys ----------------------------------------------------------------------------------------------------


def read_encoder(
    config: Reader,
    names: Names | None = None,
    *,
    norm: LayerNorm | None = None,
    activation: str = "gelu",
    dropout: float = 0.1,
    segments: int | None = 2,
    offset: int = 0,
    width: int | None = None,
    position: RelativeBias | None = None,
    shared: bool = False,
) -> Model:
    """An encoder of blocks with the norm after each sum, and learned positions; its head is left to the architecture.
    `norm`: all norms' (None: `layer_norm_eps` says). `activation`, `dropout`, `segments`: where the config doesn't say
    (segments None: there are none). `offset`, `width`, `position`, `shared`: as in the spec's parts."""
    key = _names(names)
    config.ignore(*ELSEWHERE)
    config.only("is_decoder", False)
    config.only("position_embedding_type", "absolute")
    heads = config.whole(*key("num_attention_heads"))
    norm = norm or read_norm(config)
    mixer = Attention(
        heads=heads,
        kv_heads=heads,
        mask=Full(),
        qkv_bias=True,
        out_bias=True,
        dropout=config.number(*key("attention_probs_dropout_prob"), default=dropout, high=1.0),
    )
    mlp = Plain(config.whole(*key("intermediate_size")), read_activation(config, names, activation), bias=True)
    between = config.number(*key("hidden_dropout_prob"), default=dropout, high=1.0)
    length = config.whole("max_position_embeddings", default=512, low=offset + 1) - offset
    embed = Embed(
        position=Learned(length, offset),
        norm=norm,
        dropout=between,
        segments=0 if segments is None else config.whole("type_vocab_size", default=segments, high=1024),
        width=width,
    )
    return Model(
        vocab=config.whole("vocab_size"),
        dim=config.whole(*key("hidden_size")),
        encoder=Stack(
            (Block(mixer, mlp, norm, place="post", dropout=between),),
            layers=config.layers(*key("num_hidden_layers")),
            embed=embed,
            position=position,
            shared=shared,
        ),
        head=States(),
        context=length,
    )


def write_encoder(model: Model, names: Names | None = None) -> Config:
    """The keys that all of them have."""
    block, embed = model.last.blocks[0], model.last.embed
    mixer, mlp = must_be(block.mixer, Attention, model), must_be(block.mlp, Plain, model)
    position = must_be(embed.position, Learned, model)
    said = {
        "vocab_size": model.vocab,
        "hidden_size": model.dim,
        "num_hidden_layers": model.last.layers,
        "num_attention_heads": mixer.heads,
        "intermediate_size": mlp.width,
        "hidden_act": ACTIVATION_NAMES[mlp.activation],
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": mixer.dropout,
        "max_position_embeddings": position.length + position.offset,
    }
    return {_names(names)(key)[0]: value for key, value in said.items()}


def write_norm(model: Model) -> Config:
    """`layer_norm_eps`."""
    return {"layer_norm_eps": model.last.blocks[0].norm.eps}


def write_segments(model: Model) -> Config:
    """`type_vocab_size`."""
    return {"type_vocab_size": model.last.embed.segments}


def read_norm(config: Reader) -> LayerNorm:
    """`layer_norm_eps`."""
    return LayerNorm(config.number("layer_norm_eps", default=1e-12))


def read_activation(config: Reader, names: Names | None = None, default: str = "gelu") -> Activation:
    """`hidden_act`."""
    return config.choice(*_names(names)("hidden_act"), options=ACTIVATIONS, default=default)  # type: ignore[no-any-return]


def _names(names: Names | None) -> Callable[[str], tuple[str, ...]]:
    return lambda key: (names or {}).get(key, (key,))


# --- heads ----------------------------------------------------------------------------------------------------------


def tied_only(config: Reader) -> bool:
    """The masked LM's matrix is the embedding's. (Told otherwise, transformers keeps two biases and uses one.)"""
    config.only("tie_word_embeddings", True)
    return True


def tied_or_not(config: Reader) -> bool:
    """`tie_word_embeddings`."""
    return config.flag("tie_word_embeddings", default=True)  # type: ignore[no-any-return]


def masked(
    *,
    activation: Callable[[Reader], Activation] = lambda _: "gelu",
    norm: Callable[[Reader], LayerNorm] = read_norm,
    tied: Callable[[Reader], bool] = tied_only,
) -> Read:
    """The masked LM."""

    def read(config: Reader) -> Head:
        return MaskedLM(norm(config), activation(config), tied(config))

    return read


CLASSIFIER_DROPOUT = dropout_of("classifier_dropout", "hidden_dropout_prob")


def tasks(
    stem: str,
    *,
    pooler: str | None = None,
    dropout: Callable[[Reader], float] = CLASSIFIER_DROPOUT,
    write: Callable[[Head], Config] = say_dropout,
    answer: Read | None = None,
    write_answer: Callable[[Head], Config] = lambda head: {},
) -> tuple[Architecture, ...]:
    """The checkpoints that all have: token classifier, question answering, the bare model. `pooler`: what the bare
    model's is called (older files of the other two hold it too)."""
    bare = pair(pooler, "head.pooler.dense") if pooler else ()
    left = names_of(bare)
    return (
        Architecture(
            f"{stem}ForTokenClassification",
            Tag,
            tag(dropout=dropout),
            rows=pair("classifier", "head.out"),
            write=write,
            leftovers=left,
        ),
        Architecture(
            f"{stem}ForQuestionAnswering",
            Span,
            answer or span(),
            rows=pair("qa_outputs", "head.out"),
            write=write_answer,
            leftovers=left,
        ),
        Architecture(f"{stem}Model", States, states("tanh" if pooler else None), rows=bare, bare=True),
    )


# --- tensor names ---------------------------------------------------------------------------------------------------

BLOCK: Final = "encoder.blocks.{i}."
BERT_LAYER: Final = {
    "attention.self.query": "mixer.q",
    "attention.self.key": "mixer.k",
    "attention.self.value": "mixer.v",
    "attention.output.dense": "mixer.out",
    "attention.output.LayerNorm": "mixer_norm",
    "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down",
    "output.LayerNorm": "mlp_norm",
}


def layer_rows(stem: str, names: Mapping[str, str], block: str = BLOCK) -> tuple[Row, ...]:
    """The rows of a layer, whose names start with `stem`."""
    return tuple(row for theirs, ours in names.items() for row in pair(stem + theirs, block + ours))


def embedding_rows(prefix: str, *, segments: bool = True) -> tuple[Row, ...]:
    """The rows of the embedding."""
    kinds = (Row(prefix + "embeddings.token_type_embeddings.weight", "encoder.embed.segment.weight"),)
    return (
        Row(prefix + "embeddings.word_embeddings.weight", "encoder.embed.tokens.weight"),
        Row(prefix + "embeddings.position_embeddings.weight", "encoder.embed.position.weight"),
        *(kinds if segments else ()),
        *pair(prefix + "embeddings.LayerNorm", "encoder.embed.norm"),
    )


def masked_rows(dense: str, norm: str, bias: str, weight: str | None = None) -> tuple[Row, ...]:
    """The rows of the masked LM. `weight`: a matrix of its own, where the family may have one."""
    return (
        *pair(dense, "head.dense"),
        *pair(norm, "head.norm"),
        *((Row(weight, "head.weight"),) if weight else ()),
        Row(bias, "head.bias"),
    )


def two_layers(hidden: str, out: str) -> tuple[Row, ...]:
    """The rows of a classifier with a hidden layer."""
    return (*pair(hidden, "head.hidden"), *pair(out, "head.out"))


def buffers(prefix: str) -> tuple[str, ...]:
    """What older files keep beside the weights, in the whole model's and in the bare one's."""
    return tuple(p + "embeddings." + x for p in (prefix, "") for x in ("position_ids", "token_type_ids"))


def names_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """What these rows are called in a checkpoint."""
    return tuple(row.theirs for row in rows)
