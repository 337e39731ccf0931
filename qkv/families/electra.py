"""ELECTRA (arXiv 2003.10555): BERT that tells which tokens a small generator replaced. The generator is one too."""

from qkv.families.config import Reader
from qkv.families.encoders import (
    BERT_LAYER,
    CLASSIFIER_DROPOUT,
    buffers,
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
    write_norm,
    write_segments,
)
from qkv.families.family import Architecture, Config, Family, pair
from qkv.families.heads import classify, say_dropout
from qkv.spec import Classify, MaskedLM, Model, Replaced

SUMMARY = tuple(f"summary_{x}" for x in ("type", "use_proj", "activation", "last_dropout"))  # for multiple choice


def read(config: Reader) -> Model:
    config.ignore(*SUMMARY)
    dim = config.whole("hidden_size")
    width = config.whole("embedding_size", default=128, high=2**20)
    return read_encoder(config, width=None if width == dim else width)


def write(model: Model) -> Config:
    return {**write_encoder(model), **write_norm(model), **write_segments(model), "embedding_size": model.width}


FAMILY = Family(
    name="electra",
    title="ELECTRA",
    architectures=(
        Architecture(
            "ElectraForPreTraining",
            Replaced,
            lambda config: Replaced(read_activation(config)),
            rows=(
                *pair("discriminator_predictions.dense", "head.dense"),
                *pair("discriminator_predictions.dense_prediction", "head.out"),
            ),
        ),
        Architecture(
            "ElectraForMaskedLM",
            MaskedLM,
            masked(tied=tied_or_not),  # with GELU, whatever the blocks' activation is, as is the classifier
            rows=masked_rows(
                "generator_predictions.dense",
                "generator_predictions.LayerNorm",
                "generator_lm_head.bias",
                weight="generator_lm_head.weight",
            ),
        ),
        Architecture(
            "ElectraForSequenceClassification",
            Classify,
            classify(dropout=CLASSIFIER_DROPOUT, hidden="gelu"),
            rows=two_layers("classifier.dense", "classifier.out_proj"),
            write=say_dropout,
        ),
        *tasks("Electra"),
    ),
    read=read,
    write=write,
    weights=(
        *embedding_rows("electra."),
        *pair("electra.embeddings_project", "encoder.embed.project"),
        *layer_rows("electra.encoder.layer.{i}.", BERT_LAYER),
    ),
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    ignored=buffers("electra."),
    prefix="electra.",
    tiny={
        "vocab_size": 97,
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    variants={
        "as wide as the model": {"embedding_size": 32},
        "relu": {"hidden_act": "relu"},
        "one segment": {"type_vocab_size": 1},
        "six heads": {"hidden_size": 36, "num_attention_heads": 6},
        "three layers": {"num_hidden_layers": 3},
        "41 positions": {"max_position_embeddings": 41},
        "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "of its release": {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        "untied": {"architectures": ["ElectraForMaskedLM"], "tie_word_embeddings": False},
        "untied, relu": {"architectures": ["ElectraForMaskedLM"], "tie_word_embeddings": False, "hidden_act": "relu"},
        "named labels": {
            "architectures": ["ElectraForSequenceClassification"],
            "id2label": {"0": "no", "1": "maybe", "2": "yes"},
            "classifier_dropout": 0.0,
        },
        "any labels": {
            "architectures": ["ElectraForSequenceClassification"],
            "num_labels": 3,
            "problem_type": "multi_label_classification",
        },
        "a quantity": {"architectures": ["ElectraForSequenceClassification"], "num_labels": 1},
    },
)
