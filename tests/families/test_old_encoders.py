"""BERT and the encoders after it as they were published: names of old, heads of pre-training, tensors stored twice."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import qkv
from qkv.errors import WeightError
from qkv.spec import Classify, MaskedLM, Pool, Span, States
from tests.families.reference import SEQUENCES, case, close, filled, our_outputs

Tensors = dict[str, Tensor]


def shaped(tensors: Tensors, name: str, *shape: int) -> Tensors:
    return {**tensors, name: torch.randn(shape)}


def gamma_and_beta(tensors: Tensors) -> Tensors:
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.(weight|bias)$", lambda m: old[m[0]], name): x for name, x in tensors.items()}


def with_pooler(tensors: Tensors, name: str) -> Tensors:
    return shaped(shaped(tensors, f"{name}.weight", 32, 32), f"{name}.bias", 32)


def google(tensors: Tensors) -> Tensors:
    """bert-base-uncased: TensorFlow's names of norms, all heads of pre-training, and the tied matrix once more."""
    tensors = with_pooler(gamma_and_beta(tensors), "bert.pooler.dense")
    tensors = shaped(shaped(tensors, "cls.seq_relationship.weight", 2, 32), "cls.seq_relationship.bias", 2)
    return {**tensors, "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone()}


def facebook(tensors: Tensors) -> Tensors:
    """roberta-base and xlm-roberta-base: a pooler, the matrix and bias once more, and the numbers of positions."""
    tensors = {
        **with_pooler(tensors, "roberta.pooler.dense"),
        "roberta.embeddings.position_ids": torch.arange(64)[None],
    }
    return {
        **tensors,
        "lm_head.decoder.weight": tensors["roberta.embeddings.word_embeddings.weight"].clone(),
        "lm_head.decoder.bias": tensors["lm_head.bias"].clone(),
    }


def lan(tensors: Tensors) -> Tensors:
    """albert-base-v2."""
    tensors = {**with_pooler(tensors, "albert.pooler"), "albert.embeddings.position_ids": torch.arange(64)[None]}
    return {
        **tensors,
        "predictions.decoder.weight": tensors["albert.embeddings.word_embeddings.weight"].clone(),
        "predictions.decoder.bias": tensors["predictions.bias"].clone(),
    }


def sanh(tensors: Tensors) -> Tensors:
    """distilbert-base-uncased."""
    return {**tensors, "vocab_projector.weight": tensors["distilbert.embeddings.word_embeddings.weight"].clone()}


def song(tensors: Tensors) -> Tensors:
    """mpnet-base."""
    return {
        **with_pooler(tensors, "mpnet.pooler.dense"),
        "mpnet.embeddings.position_ids": torch.arange(64)[None],
        "lm_head.decoder.weight": tensors["mpnet.embeddings.word_embeddings.weight"].clone(),
        "lm_head.decoder.bias": tensors["lm_head.bias"].clone(),
    }


PUBLISHED: list[tuple[str, str, Callable[[Tensors], Tensors], list[str]]] = [
    ("bert", "tiny", google, ["names of old", "stored beside", "left aside"]),
    ("roberta", "tiny", facebook, ["lm_head.decoder.weight", "lm_head.decoder.bias", "left aside"]),
    ("xlm-roberta", "tiny", facebook, ["lm_head.decoder.weight", "lm_head.decoder.bias", "left aside"]),
    ("albert", "tiny", lan, ["predictions.decoder.weight", "predictions.decoder.bias", "left aside"]),
    ("distilbert", "tiny", sanh, ["vocab_projector.weight is stored beside"]),
    ("electra", "tiny", lambda t: {**t, "electra.embeddings.position_ids": torch.arange(64)[None]}, []),
    ("mpnet", "tiny", song, ["lm_head.decoder.weight", "lm_head.decoder.bias", "left aside"]),
    ("bert", "BertForTokenClassification", lambda t: with_pooler(t, "bert.pooler.dense"), ["left aside"]),
    ("bert", "BertForQuestionAnswering", lambda t: with_pooler(t, "bert.pooler.dense"), ["left aside"]),
    ("roberta", "RobertaForSequenceClassification", lambda t: with_pooler(t, "roberta.pooler.dense"), ["left aside"]),
    ("bert", "BertModel", lambda t: {**t, "embeddings.position_ids": torch.arange(64)[None]}, []),
    ("bert", "BertModel", lambda t: {**t, "embeddings.token_type_ids": torch.zeros(1, 64)}, []),
]


@pytest.mark.parametrize(
    ("name", "variant", "age", "said"), PUBLISHED, ids=[f"{i} {n}: {v}" for i, (n, v, *_) in enumerate(PUBLISHED)]
)
def test_files_as_they_were_published(
    name: str, variant: str, age: Callable[[Tensors], Tensors], said: list[str]
) -> None:
    made = case(name, variant)
    ours, notes = filled(made.family, made.config, age(dict(made.tensors)))
    close(our_outputs(ours), our_outputs(made.ours), within=0)
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_old_and_new_names_of_one_tensor() -> None:
    made = case("bert", "tiny")
    name = "bert.embeddings.LayerNorm.weight"
    both = {**made.tensors, name.replace("weight", "gamma"): made.tensors[name]}
    with pytest.raises(WeightError, match="under their old and their new names"):
        filled(made.family, made.config, both)


# --- loading with another head --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as bert-base-uncased is."""
    folder = tmp_path_factory.mktemp("bert")
    made = case("bert", "tiny")
    tensors = google(dict(made.tensors))
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(made.config))
    return folder


def test_a_classifier_on_a_published_file_keeps_its_pooler(published: Path) -> None:
    model = qkv.load(str(published), new_head="classify", labels=["ham", "spam"])
    assert model.spec.head == Classify(("ham", "spam"), hidden="tanh", dropout=0.1)
    drawn = [note for note in model.notes if note.startswith("new, drawn at random")]
    assert len(drawn) == 1
    assert "head.out.weight" in drawn[0]
    assert "head.hidden" not in drawn[0]


@pytest.mark.parametrize(
    ("head", "kind"), [("states", States), ("pool", Pool), ("span", Span), ("masked", MaskedLM), (None, MaskedLM)]
)
def test_other_heads_on_a_published_file(published: Path, head: str | None, kind: type) -> None:
    model = qkv.load(str(published), new_head=head)
    assert type(model.spec.head) is kind
    ids = [SEQUENCES[2]]
    with torch.no_grad():
        ours, theirs = (m.states(*m.batch(ids)) for m in (model, case("bert", "tiny").ours))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    aside = [note for note in model.notes if note.startswith("left aside")]
    assert len(aside) == 1
    assert ("cls.predictions.bias" in aside[0]) == (kind is not MaskedLM)
    assert ("pooler" in aside[0]) == (kind in (MaskedLM, Span))


def test_a_published_file_is_written_as_it_is_today(published: Path, tmp_path: Path) -> None:
    model = qkv.load(str(published))
    again = qkv.load(str(qkv.save(model, tmp_path / "again")))
    assert again.spec == model.spec
    assert not any("old" in note or "aside" in note or "beside" in note for note in again.notes)
    close(our_outputs(again), our_outputs(model), within=0)
