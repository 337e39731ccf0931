"""A recipe's model and data without training."""

import json
from pathlib import Path
from typing import Any

import pytest

import qkv
from qkv import spec
from qkv.errors import ConfigError, InputError, NotFound
from qkv.families.family import find
from qkv.inputs.train import train_tokenizer
from qkv.train.preview import preview
from qkv.train.recipe import Recipe

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
TEXT = "the quick brown fox jumps over a lazy dog while it rains and no one looks"
WORDS = TEXT.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [" ".join(WORDS[i % 9 :]) for i in range(40)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n")
    labelled = ({"text": line, "label": ["b", "a"][i % 2]} for i, line in enumerate(lines))
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(one) + "\n" for one in labelled))
    return tmp_path


def recipe(folder: Path, **tables: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "model": {"config": GPT2},
            "tokenizer": {"train": "word"},
            "data": {"train": "text.txt", "root": str(folder)},
            "objective": {"kind": "causal"},
            "batch": {"sequences": 4},
            "train": {"steps": 5},
            **tables,
        }
    )


@pytest.mark.filterwarnings("error")
def test_fresh_weights_and_a_trained_tokenizer(folder: Path) -> None:
    found = preview(recipe(folder))
    assert (found.model.family, found.model.vocab) == ("gpt2", len(set(WORDS)))
    assert (found.read.records, found.read.encoded, found.read.whole) == (40, 40, True)
    assert 7 <= found.read.tokens <= 17
    assert "tokenizer: one trained on 40 records" in found.notes[0]
    larger = preview(recipe(folder, tokenizer={"train": "bpe", "vocab": 5000}))
    assert larger.model.vocab == 5000, "what the recipe asks for, though 40 lines hold fewer"


@pytest.mark.filterwarnings("ignore:the texts gave")
def test_a_model_that_exists(folder: Path) -> None:
    tokenizer = train_tokenizer([" ".join(WORDS)], "wordpiece", 120)
    config = {**find("bert").tiny, "vocab_size": tokenizer.vocab_size}
    model = qkv.Model(find("bert").spec(config))
    model.tokenizer = tokenizer
    qkv.save(model, folder / "bert")
    origin = {"from": str(folder / "bert"), "new_head": "classify"}
    said = {"model": origin, "tokenizer": {}, "objective": {"kind": "classify"}}
    found = preview(recipe(folder, **said, data={"train": "labels.jsonl", "root": str(folder)}))
    assert isinstance(found.model.head, spec.Classify)
    assert found.model.head.labels == ("a", "b")
    assert found.notes == ()
    assert found.read.bad == 0
    borrowed = preview(recipe(folder, tokenizer={"from": str(folder / "bert")}))
    assert borrowed.model.vocab == tokenizer.vocab_size


def test_what_is_wrong_is_found_before_training(folder: Path) -> None:
    with pytest.raises(InputError, match=r"names no tokenizer: say tokenizer.from .* or tokenizer.train"):
        preview(recipe(folder, tokenizer={}))
    with pytest.raises(NotFound, match=r"other\.txt is not there"):
        preview(recipe(folder, data={"train": "other.txt", "root": str(folder)}))
    with pytest.raises(ConfigError, match="warmup is 5 of 5 steps"):
        preview(recipe(folder, train={"steps": 5, "schedule": {"warmup": 5}}))
    with pytest.raises(InputError, match=r"none of 40 training records gives anything to train on: .*batch\.length"):
        preview(recipe(folder, batch={"sequences": 4, "length": 2}))
