"""Configs of encoders as their publishers wrote them are understood, and come to the published sizes."""

import json
from typing import Any

import pytest

from qkv import count
from qkv.cli.known import FOLDER
from qkv.families.family import find
from qkv.spec import Attention, Classify, LayerNorm, Learned, Model, Plain, RelativeBias, Replaced, Span, States, Tag

MULTILINGUAL = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "directionality": "bidi",
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform", "position_embedding_type": "absolute", "type_vocab_size": 2,
    "use_cache": True, "vocab_size": 119547,
}  # fmt: skip
MINILM = {
    "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
    "num_hidden_layers": 6, "pad_token_id": 0, "position_embedding_type": "absolute",
    "transformers_version": "4.8.2", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip
NAMES = ["O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
NER = {
    "_num_labels": 9, "architectures": ["BertForTokenClassification"], "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "id2label": {str(i): name for i, name in enumerate(NAMES)}, "initializer_range": 0.02, "intermediate_size": 3072,
    "label2id": {name: i for i, name in enumerate(NAMES)}, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 12, "output_past": True, "pad_token_id": 0,
    "type_vocab_size": 2, "vocab_size": 28996,
}  # fmt: skip
SST2 = {
    "activation": "gelu", "architectures": ["DistilBertForSequenceClassification"], "attention_dropout": 0.1,
    "dim": 768, "dropout": 0.1, "finetuning_task": "sst-2", "hidden_dim": 3072,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "initializer_range": 0.02,
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1}, "max_position_embeddings": 512, "model_type": "distilbert",
    "n_heads": 12, "n_layers": 6, "output_past": True, "pad_token_id": 0, "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
}  # fmt: skip
SQUAD2 = {
    "architectures": ["RobertaForQuestionAnswering"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
    "eos_token_id": 2, "gradient_checkpointing": False, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "language": "english",
    "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta", "name": "Roberta",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "position_embedding_type": "absolute",
    "type_vocab_size": 1, "use_cache": True, "vocab_size": 50265,
}  # fmt: skip
GENERATOR = {
    "architectures": ["ElectraForMaskedLM"], "attention_probs_dropout_prob": 0.1, "embedding_size": 128,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 256, "initializer_range": 0.02,
    "intermediate_size": 1024, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "electra",
    "num_attention_heads": 4, "num_hidden_layers": 12, "type_vocab_size": 2, "vocab_size": 30522,
}  # fmt: skip


def known(name: str, architecture: str | None = None) -> dict[str, Any]:
    """The config of a well-known model, with another head if one is asked for."""
    config = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return config if architecture is None else {**config, "architectures": [architecture]}


def read(config: dict[str, Any]) -> tuple[Model, Attention, Plain]:
    model = find(config["model_type"]).spec(config)
    (block,) = model.last.blocks
    assert isinstance(block.mixer, Attention)
    assert isinstance(block.mlp, Plain)
    return model, block.mixer, block.mlp


SIZES = [  # as transformers counts them
    ("bert-base-uncased", "BertModel", 109_482_240),
    ("bert-base-uncased", "BertForMaskedLM", 109_514_298),
    ("bert-base-uncased", "BertForPreTraining", 110_106_428),
    ("bert-large-uncased", "BertModel", 335_141_888),
    ("roberta-base", "RobertaModel", 124_645_632),
    ("xlm-roberta-base", "XLMRobertaModel", 278_043_648),
    ("distilbert-base-uncased", "DistilBertModel", 66_362_880),
    ("albert-base-v2", "AlbertModel", 11_683_584),
    ("electra-small-discriminator", "ElectraModel", 13_483_008),
    ("mpnet-base", "MPNetModel", 109_486_464),
]


@pytest.mark.parametrize(("name", "architecture", "size"), SIZES, ids=[architecture for _, architecture, _ in SIZES])
def test_sizes(name: str, architecture: str, size: int) -> None:
    config = known(name, architecture)
    assert count.parameters(find(config["model_type"]).spec(config)) == size


def test_bert() -> None:
    model, mixer, mlp = read(known("bert-base-uncased"))
    assert (mixer.heads, model.dim, mlp.width, mlp.activation, model.context) == (12, 768, 3072, "gelu", 512)
    assert (model.last.embed.segments, model.last.embed.norm) == (2, LayerNorm(1e-12))
    assert read(MULTILINGUAL)[0].vocab == 119547
    assert read(MINILM)[0].head == States("tanh")
    assert read(NER)[0].head == Tag(tuple(NAMES), dropout=0.1)


def test_roberta() -> None:
    model, _, _ = read(known("roberta-base"))
    assert (model.last.embed.position, model.context, model.last.embed.segments) == (Learned(512, offset=2), 512, 1)
    assert read(known("xlm-roberta-base"))[0].vocab == 250002
    assert read(SQUAD2)[0].head == Span()


def test_distilbert() -> None:
    model, _, _ = read(known("distilbert-base-uncased"))
    assert (model.last.layers, model.last.embed.segments) == (6, 0)
    assert read(SST2)[0].head == Classify(("NEGATIVE", "POSITIVE"), hidden="relu", dropout=0.2)


def test_albert() -> None:
    model, _, mlp = read(known("albert-base-v2"))
    assert (model.last.shared, model.last.embed.width, mlp.activation, model.last.layers) == (
        True,
        128,
        "gelu_tanh",
        12,
    )


def test_electra() -> None:
    model, _, _ = read(known("electra-small-discriminator"))
    assert (model.head, model.last.embed.width) == (Replaced("gelu"), 128)
    assert read(GENERATOR)[0].head.tied  # type: ignore[attr-defined]


def test_mpnet() -> None:
    model, mixer, _ = read(known("mpnet-base"))
    assert (model.last.position, mixer.position) == (RelativeBias(32, 128, both_ways=True), None)
    assert model.last.embed.position == Learned(512, offset=2)


@pytest.mark.parametrize(
    "config", [MULTILINGUAL, MINILM, NER, SST2, SQUAD2, GENERATOR], ids=lambda c: str(c["architectures"])
)
def test_each_is_written_back_as_the_same_model(config: dict[str, Any]) -> None:
    family = find(config["model_type"])
    assert family.spec(family.config(family.spec(config))) == family.spec(config)
