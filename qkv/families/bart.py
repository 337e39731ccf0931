"""BART (arXiv 1910.13461): the Transformer of 2017 with learned positions, two rows before them that no token uses, and
a norm on the embedding."""

from qkv.families.config import Reader
from qkv.families.family import Family
from qkv.families.seq2seq import (
    COPIES,
    SHARED,
    TINY,
    VARIANTS,
    Layout,
    answerer,
    bare,
    classifier,
    read_like_bart,
    rows,
    text_to_text,
    write_like_bart,
)
from qkv.spec import Model

LAYOUT = Layout(learned=True, place="post", normed=True, start=2)


def read(config: Reader) -> Model:
    config.only("tie_word_embeddings", True)  # untied, transformers 5 also parts the two stacks' tables
    return read_like_bart(config, LAYOUT)


FAMILY = Family(
    name="bart",
    title="BART",
    architectures=(
        text_to_text("BartForConditionalGeneration"),
        classifier("BartForSequenceClassification", labels=3),
        answerer("BartForQuestionAnswering"),
        bare("BartModel"),
    ),
    read=read,
    write=write_like_bart,
    weights=rows(LAYOUT),
    prefix="model.",
    copies={**COPIES, "lm_head.weight": SHARED},
    ignored=tuple(f"{prefix}{side}.version" for prefix in ("", "model.") for side in ("encoder", "decoder")),
    tiny=TINY,
    variants={
        **VARIANTS,
        "one score": {"architectures": ["BartForSequenceClassification"], "num_labels": 1},
        "several labels": {
            "architectures": ["BartForSequenceClassification"],
            "problem_type": "multi_label_classification",
            "id2label": {"0": "old", "1": "new"},
        },
    },
)
