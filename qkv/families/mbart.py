"""mBART and mBART-50 (arXiv 2001.08210): BART for many languages, its norms before each part and one more at the end
of each stack.

The decoder's first token is the target's language. Where the config names none, transformers takes it from the source's
end; here the decoder's ids must then be given. So its classifier and its reader of answers, whose decoder reads the
source in that order, are not here."""

from qkv.families.config import Reader
from qkv.families.family import Family
from qkv.families.seq2seq import (
    COPIES,
    SHARED,
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

LAYOUT = Layout(learned=True, place="pre", normed=True, start=None)


def read(config: Reader) -> Model:
    config.only("tie_word_embeddings", True)  # as for BART
    return read_like_bart(config, LAYOUT)


FAMILY = Family(
    name="mbart",
    title="mBART, mBART-50",
    architectures=(
        text_to_text("MBartForConditionalGeneration"),
        bare("MBartModel"),
    ),
    read=read,
    write=write_like_bart,
    weights=rows(LAYOUT),
    prefix="model.",
    copies={**COPIES, "lm_head.weight": SHARED},
    tiny={**TINY, "scale_embedding": True},
    variants={**VARIANTS, "a start": {"decoder_start_token_id": 2}},
)
