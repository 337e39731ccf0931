"""ALBERT (arXiv 1909.11942): BERT with a factorised embedding and one block for all layers."""

from qkv.families.config import Reader
from qkv.families.encoders import (
    SENTENCE_ORDER,
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
from qkv.families.family import Architecture, Config, Family, pair
from qkv.families.heads import classify, nested
from qkv.spec import Classify, Head, Heads, MaskedLM, Model, Tag

# Of the first code; no published model has other values, and no later code reads them.
FIXED = {"gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0, "down_scale_factor": 1, "layers_to_keep": []}


def read(config: Reader) -> Model:
    for key, value in {**FIXED, "num_hidden_groups": 1, "inner_group_num": 1}.items():
        config.only(key, value)
    config.ignore("classifier_dropout_prob")  # a head's, read with it
    width = config.whole("embedding_size", default=128, high=2**20)
    return read_encoder(config, activation="gelu_new", dropout=0.0, width=width, shared=True)


def write(model: Model) -> Config:
    return {
        **write_encoder(model),
        **write_norm(model),
        **write_segments(model),
        "embedding_size": model.width,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    }


def dropout(config: Reader) -> float:
    """`classifier_dropout_prob`, where null means the blocks'."""
    said = config.number("classifier_dropout_prob", default=0.1, null=None, high=1.0)
    return config.number("hidden_dropout_prob", default=0.0, high=1.0) if said is None else said  # type: ignore[no-any-return]


def write_dropout(head: Head) -> Config:
    return {"classifier_dropout_prob": head.dropout} if isinstance(head, Classify | Tag) else {}


def sentence_order(config: Reader) -> Head:
    return Classify(SENTENCE_ORDER, hidden="tanh", dropout=dropout(config))


masked_lm = masked(activation=lambda config: read_activation(config, default="gelu_new"))
MASKED = masked_rows("predictions.dense", "predictions.LayerNorm", "predictions.bias")
ORDER = two_layers("albert.pooler", "sop_classifier.classifier")
# One group of one layer: the block that all layers share.
LAYER = layer_rows(
    "albert.encoder.albert_layer_groups.0.albert_layers.0.",
    {
        "attention.query": "mixer.q",
        "attention.key": "mixer.k",
        "attention.value": "mixer.v",
        "attention.dense": "mixer.out",
        "attention.LayerNorm": "mixer_norm",
        "ffn": "mlp.up",
        "ffn_output": "mlp.down",
        "full_layer_layer_norm": "mlp_norm",
    },
    block="encoder.blocks.0.",
)

FAMILY = Family(
    name="albert",
    title="ALBERT",
    architectures=(
        Architecture("AlbertForMaskedLM", MaskedLM, masked_lm, rows=MASKED, leftovers=names_of(ORDER)),
        Architecture(
            "AlbertForPreTraining",
            Heads,
            lambda config: Heads((masked_lm(config), sentence_order(config))),
            rows=(*nested(MASKED, 0), *nested(ORDER, 1)),
            write=lambda head: write_dropout(head.heads[1]) if isinstance(head, Heads) else {},
        ),
        Architecture(
            "AlbertForSequenceClassification",
            Classify,
            classify(dropout=dropout, hidden="tanh"),
            rows=two_layers("albert.pooler", "classifier"),
            write=write_dropout,
        ),
        *tasks("Albert", pooler="albert.pooler", dropout=dropout, write=write_dropout),
    ),
    read=read,
    write=write,
    weights=(
        *embedding_rows("albert."),
        *pair("albert.encoder.embedding_hidden_mapping_in", "encoder.embed.project"),
        *LAYER,
    ),
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    ignored=buffers("albert."),
    prefix="albert.",
    tiny={
        "vocab_size": 97,
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    variants={
        "gelu": {"hidden_act": "gelu"},
        "as wide as the model": {"embedding_size": 32},
        "wider than the model": {"embedding_size": 40},
        "one segment": {"type_vocab_size": 1},
        "one layer": {"num_hidden_layers": 1},
        "six heads": {"hidden_size": 36, "num_attention_heads": 6},
        "41 positions": {"max_position_embeddings": 41},
        "dropout": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1},
        "of its release": {**FIXED, "num_hidden_groups": 1, "inner_group_num": 1},
        "named labels": {
            "architectures": ["AlbertForSequenceClassification"],
            "id2label": {"0": "no", "1": "maybe", "2": "yes"},
            "classifier_dropout_prob": 0.0,
        },
        "any labels": {
            "architectures": ["AlbertForSequenceClassification"],
            "num_labels": 3,
            "problem_type": "multi_label_classification",
        },
        "a quantity": {"architectures": ["AlbertForSequenceClassification"], "num_labels": 1},
        "named tags": {
            "architectures": ["AlbertForTokenClassification"],
            "id2label": {"0": "O", "1": "B-PER", "2": "I-PER"},
            "classifier_dropout_prob": 0.3,
        },
        "order, less dropout": {"architectures": ["AlbertForPreTraining"], "classifier_dropout_prob": 0.05},
    },
)
