"""BERT (arXiv 1810.04805): tokens that see both ways, learned positions and segments, the norm after each sum."""

from qkv.families.config import Reader
from qkv.families.encoders import (
    BERT_LAYER,
    CLASSIFIER_DROPOUT,
    NEXT_SENTENCE,
    buffers,
    embedding_rows,
    layer_rows,
    masked,
    masked_rows,
    names_of,
    read_activation,
    read_encoder,
    tasks,
    two_layers,
    write_encoder,
    write_norm,
    write_segments,
)
from qkv.families.family import Architecture, Config, Family
from qkv.families.heads import classify, nested, say_dropout
from qkv.spec import Classify, Head, Heads, MaskedLM, Model

# Of a pooler that was never built, and what its text was.
UNUSED = tuple(f"pooler_{x}" for x in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type"))


def read(config: Reader) -> Model:
    config.ignore("directionality", *UNUSED)
    return read_encoder(config)


def write(model: Model) -> Config:
    return write_encoder(model) | write_norm(model) | write_segments(model)


def next_sentence(config: Reader) -> Head:
    return Classify(NEXT_SENTENCE, hidden="tanh")


masked_lm = masked(activation=read_activation)
MASKED = masked_rows("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
NEXT = two_layers("bert.pooler.dense", "cls.seq_relationship")

FAMILY = Family(
    name="bert",
    title="BERT",
    architectures=(
        Architecture("BertForMaskedLM", MaskedLM, masked_lm, rows=MASKED, leftovers=names_of(NEXT)),
        Architecture(
            "BertForPreTraining",
            Heads,
            lambda config: Heads((masked_lm(config), next_sentence(config))),
            rows=(*nested(MASKED, 0), *nested(NEXT, 1)),
        ),
        Architecture("BertForNextSentencePrediction", Classify, next_sentence, rows=NEXT),
        Architecture(
            "BertForSequenceClassification",
            Classify,
            classify(dropout=CLASSIFIER_DROPOUT, hidden="tanh"),
            rows=two_layers("bert.pooler.dense", "classifier"),
            write=say_dropout,
        ),
        *tasks("Bert", pooler="bert.pooler.dense"),
    ),
    read=read,
    write=write,
    weights=(*embedding_rows("bert."), *layer_rows("bert.encoder.layer.{i}.", BERT_LAYER)),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=buffers("bert."),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},  # TensorFlow's names
    prefix="bert.",
    tiny={
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    variants={
        "relu": {"hidden_act": "relu"},
        "tanh gelu": {"hidden_act": "gelu_new"},
        "one segment": {"type_vocab_size": 1},
        "three segments": {"type_vocab_size": 3},
        "one layer": {"num_hidden_layers": 1},
        "one head": {"num_attention_heads": 1},
        "six heads": {"hidden_size": 36, "num_attention_heads": 6},
        "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "another eps": {"layer_norm_eps": 1e-3},
        "41 positions": {"max_position_embeddings": 41},
        "of its release": {"directionality": "bidi", "pooler_fc_size": 768, "position_embedding_type": "absolute"},
        "named labels": {
            "architectures": ["BertForSequenceClassification"],
            "id2label": {"0": "no", "1": "maybe", "2": "yes"},
            "classifier_dropout": 0.3,
        },
        "any labels": {
            "architectures": ["BertForSequenceClassification"],
            "num_labels": 5,
            "problem_type": "multi_label_classification",
        },
        "a quantity": {"architectures": ["BertForSequenceClassification"], "num_labels": 1},
        "two quantities": {"architectures": ["BertForSequenceClassification"], "problem_type": "regression"},
        "named tags": {
            "architectures": ["BertForTokenClassification"],
            "id2label": {"0": "O", "1": "B-PER", "2": "I-PER"},
            "hidden_dropout_prob": 0.2,
        },
    },
)
