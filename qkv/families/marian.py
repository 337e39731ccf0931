"""Marian's OPUS-MT (arXiv 1804.00344): the Transformer of 2017 as it was: sinusoidal positions, norms after each sum,
one table of tokens for both languages (or one for each stack), its activation swish."""

from dataclasses import replace
from typing import Any

from qkv.families.config import Reader
from qkv.families.family import Family, Row
from qkv.families.seq2seq import (
    SHARED,
    SINES,
    TINY,
    VARIANTS,
    Layout,
    bare,
    read_like_bart,
    stack_rows,
    text_to_text,
    write_like_bart,
)
from qkv.spec import LMHead, Model

LAYOUT = Layout(learned=False, place="post", normed=False, start=None)


def read(config: Reader) -> Model:
    one_table = config.flag("share_encoder_decoder_embeddings", default=True)
    tied = config.flag("tie_word_embeddings", default=True)
    if one_table and not tied:  # transformers 5 then parts the two stacks' tables too
        raise config.wrong("tie_word_embeddings", "is False, which needs share_encoder_decoder_embeddings False too")
    config.only("decoder_vocab_size", config.whole("vocab_size"), None)
    model = read_like_bart(config, LAYOUT)
    return replace(model, head=LMHead(tied=tied, bias=True), one_table=one_table)


def write(model: Model) -> dict[str, Any]:
    pad = {} if model.start is None else {"pad_token_id": model.start}  # the decoder begins with the padding
    return {**write_like_bart(model), "share_encoder_decoder_embeddings": model.one_table, **pad}


ENCODER, DECODER = "encoder.embed.tokens.weight", "decoder.embed.tokens.weight"
TABLES = (
    Row(SHARED, ENCODER, without=DECODER),
    Row("model.encoder.embed_tokens.weight", ENCODER, beside=DECODER),
    Row("model.decoder.embed_tokens.weight", DECODER),
)

FAMILY = Family(
    name="marian",
    title="Marian, OPUS-MT",
    architectures=(text_to_text("MarianMTModel", Row("lm_head.weight", "head.weight")), bare("MarianModel")),
    read=read,
    write=write,
    weights=(*TABLES, *stack_rows("encoder", LAYOUT), *stack_rows("decoder", LAYOUT)),
    prefix="model.",
    copies={
        "model.encoder.embed_tokens.weight": SHARED,
        "model.decoder.embed_tokens.weight": SHARED,
        "lm_head.weight": SHARED,
    },
    ignored=SINES,
    tiny={
        **TINY,
        "activation_function": "swish",
        "scale_embedding": True,
        "decoder_start_token_id": 1,
        "pad_token_id": 1,
        "eos_token_id": 0,
    },
    variants={
        **{name: change for name, change in VARIANTS.items() if name != "scaled"},
        "unscaled": {"scale_embedding": False},
        "two tables": {"share_encoder_decoder_embeddings": False},
        "two tables and a head": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    },
)
