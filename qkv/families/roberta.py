"""RoBERTa (arXiv 1907.11692): BERT whose positions are counted from behind the padding's, without sentence pairs."""

from qkv.families.config import Reader
from qkv.families.encoders import (
    BERT_LAYER,
    CLASSIFIER_DROPOUT,
    buffers,
    embedding_rows,
    layer_rows,
    masked,
    masked_rows,
    read_encoder,
    tasks,
    two_layers,
    write_encoder,
    write_norm,
    write_segments,
)
from qkv.families.family import Architecture, Config, Family
from qkv.families.heads import classify, say_dropout
from qkv.families.layers import must_be
from qkv.spec import Classify, Learned, MaskedLM, Model


def read(config: Reader) -> Model:
    return read_encoder(config, offset=config.whole("pad_token_id", default=1, low=0, high=1023) + 1)


def write(model: Model) -> Config:
    first = must_be(model.last.embed.position, Learned, model).offset
    return {**write_encoder(model), **write_norm(model), **write_segments(model), "pad_token_id": first - 1}


def architectures(stem: str) -> tuple[Architecture, ...]:
    """The checkpoints of RoBERTa and of XLM-RoBERTa. The masked LM's activation is GELU, whatever the blocks' is."""
    pooler = ("roberta.pooler.dense.weight", "roberta.pooler.dense.bias")
    masked_lm = masked_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
    return (
        Architecture(f"{stem}ForMaskedLM", MaskedLM, masked(), rows=masked_lm, leftovers=pooler),
        Architecture(
            f"{stem}ForSequenceClassification",
            Classify,
            classify(dropout=CLASSIFIER_DROPOUT, hidden="tanh"),
            rows=two_layers("classifier.dense", "classifier.out_proj"),
            write=say_dropout,
            leftovers=pooler,
        ),
        *tasks(stem, pooler="roberta.pooler.dense"),
    )


WEIGHTS = (*embedding_rows("roberta."), *layer_rows("roberta.encoder.layer.{i}.", BERT_LAYER))
COPIES = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}

FAMILY = Family(
    name="roberta",
    title="RoBERTa",
    architectures=architectures("Roberta"),
    read=read,
    write=write,
    weights=WEIGHTS,
    copies=COPIES,
    ignored=buffers("roberta."),
    prefix="roberta.",
    tiny=TINY,
    variants={
        "relu": {"hidden_act": "relu"},
        "two segments": {"type_vocab_size": 2},
        "pad 0": {"pad_token_id": 0},
        "pad 2": {"pad_token_id": 2},
        "six heads": {"hidden_size": 36, "num_attention_heads": 6},
        "three layers": {"num_hidden_layers": 3},
        "41 positions": {"max_position_embeddings": 43},
        "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "of its release": {"output_past": True, "layer_norm_eps": 1e-5},
        "named labels": {
            "architectures": ["RobertaForSequenceClassification"],
            "id2label": {"0": "negative", "1": "neutral", "2": "positive"},
            "classifier_dropout": 0.0,
        },
        "any labels": {
            "architectures": ["RobertaForSequenceClassification"],
            "num_labels": 3,
            "problem_type": "multi_label_classification",
        },
        "a quantity": {"architectures": ["RobertaForSequenceClassification"], "num_labels": 1},
    },
)
