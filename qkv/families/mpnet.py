"""MPNet (arXiv 2004.09297): RoBERTa's shape with T5's relative bias, one table of it for all layers."""

from qkv.families.config import Reader
from qkv.families.encoders import (
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
)
from qkv.families.family import Architecture, Config, Family, Row
from qkv.families.heads import classify, dropout_of
from qkv.spec import Classify, MaskedLM, Model, RelativeBias

POOLER = ("mpnet.pooler.dense.weight", "mpnet.pooler.dense.bias")
# Its heads have no dropout of their own; their activations are fixed, whatever the blocks' is.
DROPOUT = dropout_of("hidden_dropout_prob")


def read(config: Reader) -> Model:
    # The code that it was trained with has 32 buckets and the padding's id 1, whatever the config says.
    config.only("relative_attention_num_buckets", 32)
    return read_encoder(config, segments=None, offset=2, position=RelativeBias(32, 128, both_ways=True))


def write(model: Model) -> Config:
    return write_encoder(model) | write_norm(model)


FAMILY = Family(
    name="mpnet",
    title="MPNet",
    architectures=(
        Architecture(
            "MPNetForMaskedLM",
            MaskedLM,
            masked(),
            rows=masked_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
            leftovers=POOLER,
        ),
        Architecture(
            "MPNetForSequenceClassification",
            Classify,
            classify(dropout=DROPOUT, hidden="tanh"),
            rows=two_layers("classifier.dense", "classifier.out_proj"),
            leftovers=POOLER,
        ),
        *tasks("MPNet", pooler="mpnet.pooler.dense", dropout=DROPOUT, write=lambda head: {}),
    ),
    read=read,
    write=write,
    weights=(
        *embedding_rows("mpnet.", segments=False),
        Row("mpnet.encoder.relative_attention_bias.weight", "encoder.position.weight"),
        *layer_rows(
            "mpnet.encoder.layer.{i}.",
            {
                "attention.attn.q": "mixer.q",
                "attention.attn.k": "mixer.k",
                "attention.attn.v": "mixer.v",
                "attention.attn.o": "mixer.out",
                "attention.LayerNorm": "mixer_norm",
                "intermediate.dense": "mlp.up",
                "output.dense": "mlp.down",
                "output.LayerNorm": "mlp_norm",
            },
        ),
    ),
    copies={
        "lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    ignored=buffers("mpnet."),
    prefix="mpnet.",
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
        "one head": {"num_attention_heads": 1},
        "six heads": {"hidden_size": 36, "num_attention_heads": 6},
        "three layers": {"num_hidden_layers": 3},
        "41 positions": {"max_position_embeddings": 43},
        "no dropout": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "of its release": {"relative_attention_num_buckets": 32, "layer_norm_eps": 1e-5},
        "named labels": {
            "architectures": ["MPNetForSequenceClassification"],
            "id2label": {"0": "no", "1": "maybe", "2": "yes"},
            "hidden_dropout_prob": 0.3,
        },
        "any labels": {
            "architectures": ["MPNetForSequenceClassification"],
            "num_labels": 3,
            "problem_type": "multi_label_classification",
        },
        "a quantity": {"architectures": ["MPNetForSequenceClassification"], "num_labels": 1},
    },
)
