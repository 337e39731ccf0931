"""Pegasus (arXiv 1912.08777): like BART, with sinusoidal positions, its norms before each part and one more at the end
of each stack."""

from qkv.families.config import Reader
from qkv.families.family import Family
from qkv.families.seq2seq import (
    COPIES,
    SHARED,
    SINES,
    TINY,
    VARIANTS,
    Layout,
    bare,
    read_like_bart,
    rows,
    text_to_text,
    write_like_bart,
)
from qkv.spec import Model

LAYOUT = Layout(learned=False, place="pre", normed=False, start=0)


def read(config: Reader) -> Model:
    config.only("tie_word_embeddings", True)  # as for BART
    return read_like_bart(config, LAYOUT)


FAMILY = Family(
    name="pegasus",
    title="Pegasus",
    architectures=(text_to_text("PegasusForConditionalGeneration"), bare("PegasusModel")),
    read=read,
    write=write_like_bart,
    weights=rows(LAYOUT),
    prefix="model.",
    copies={**COPIES, "lm_head.weight": SHARED},
    ignored=SINES,
    tiny={**TINY, "activation_function": "relu", "eos_token_id": 1},
    variants={**VARIANTS, "gelu": {"activation_function": "gelu"}},
)
