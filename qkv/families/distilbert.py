"""DistilBERT (arXiv 1910.01108): BERT with half the layers, without segments and pooler, under names of its own."""

from typing import Final

from qkv.families.config import Reader
from qkv.families.encoders import (
    embedding_rows,
    layer_rows,
    masked,
    masked_rows,
    read_activation,
    read_encoder,
    tasks,
    tied_or_not,
    two_layers,
    write_encoder,
)
from qkv.families.family import Architecture, Config, Family
from qkv.families.heads import classify, dropout_of, span
from qkv.spec import Classify, Head, LayerNorm, MaskedLM, Model, Span

NAMES: Final = {
    "hidden_size": ("dim", "hidden_size"),
    "num_hidden_layers": ("n_layers", "num_hidden_layers"),
    "num_attention_heads": ("n_heads", "num_attention_heads"),
    "intermediate_size": ("hidden_dim",),
    "hidden_act": ("activation",),
    "hidden_dropout_prob": ("dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
}
NORM: Final = LayerNorm(1e-12)  # its config has no key for it


def read(config: Reader) -> Model:
    # Whether positions began as sines: they are stored in any case. Each head's dropout is read with its head.
    config.ignore("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout")
    config.only("tie_weights_", True)
    return read_encoder(config, NAMES, norm=NORM, segments=None)


def write(model: Model) -> Config:
    return write_encoder(model, NAMES)


def classifier_dropout(head: Head) -> Config:
    return {"seq_classif_dropout": head.dropout} if isinstance(head, Classify) else {}


def answer_dropout(head: Head) -> Config:
    return {"qa_dropout": head.dropout} if isinstance(head, Span) else {}


FAMILY = Family(
    name="distilbert",
    title="DistilBERT",
    architectures=(
        Architecture(
            "DistilBertForMaskedLM",
            MaskedLM,
            masked(activation=lambda c: read_activation(c, NAMES), norm=lambda _: NORM, tied=tied_or_not),
            rows=masked_rows(
                "vocab_transform", "vocab_layer_norm", "vocab_projector.bias", weight="vocab_projector.weight"
            ),
        ),
        Architecture(
            "DistilBertForSequenceClassification",
            Classify,
            classify(dropout=dropout_of("seq_classif_dropout", default=0.2), hidden="relu"),
            rows=two_layers("pre_classifier", "classifier"),
            write=classifier_dropout,
        ),
        *tasks(
            "DistilBert",
            dropout=dropout_of("dropout"),
            write=lambda head: {},  # the token classifier's is the blocks'
            answer=span(dropout=dropout_of("qa_dropout")),
            write_answer=answer_dropout,
        ),
    ),
    read=read,
    write=write,
    weights=(
        *embedding_rows("distilbert.", segments=False),
        *layer_rows(
            "distilbert.transformer.layer.{i}.",
            {
                "attention.q_lin": "mixer.q",
                "attention.k_lin": "mixer.k",
                "attention.v_lin": "mixer.v",
                "attention.out_lin": "mixer.out",
                "sa_layer_norm": "mixer_norm",
                "ffn.lin1": "mlp.up",
                "ffn.lin2": "mlp.down",
                "output_layer_norm": "mlp_norm",
            },
        ),
    ),
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    ignored=("distilbert.embeddings.position_ids", "embeddings.position_ids"),
    prefix="distilbert.",
    tiny={
        "vocab_size": 97,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 64,
    },
    variants={
        "untied": {"tie_word_embeddings": False},
        "relu": {"activation": "relu"},
        "six heads": {"dim": 36, "n_heads": 6},
        "one layer": {"n_layers": 1},
        "41 positions": {"max_position_embeddings": 41},
        "no dropout": {"dropout": 0.0, "attention_dropout": 0.0},
        "of its release": {"sinusoidal_pos_embds": True, "tie_weights_": True},
        "named labels": {
            "architectures": ["DistilBertForSequenceClassification"],
            "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
            "seq_classif_dropout": 0.0,
        },
        "any labels": {
            "architectures": ["DistilBertForSequenceClassification"],
            "num_labels": 3,
            "problem_type": "multi_label_classification",
        },
        "a quantity": {"architectures": ["DistilBertForSequenceClassification"], "num_labels": 1},
        "answers, more dropout": {"architectures": ["DistilBertForQuestionAnswering"], "qa_dropout": 0.3},
        "tags, more dropout": {"architectures": ["DistilBertForTokenClassification"], "dropout": 0.3},
    },
)
