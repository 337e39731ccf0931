"""Recipes small enough to run in a test: a few texts, a model of a few numbers."""

import json
import random
from pathlib import Path
from typing import Any

from qkv.train.recipe import Recipe
from qkv.train.recipe_file import merge

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "tree",
    "house",
    "big",
    "small",
]
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32}
_BLOCK = {
    "kind": "Block",
    "mixer": {"kind": "Attention", "heads": 2, "kv_heads": 2, "mask": {"kind": "Causal"}},
    "mlp": {"kind": "Plain", "width": 32, "activation": "relu2"},
    "norm": {"kind": "RMS", "eps": 1e-5},
}
SPEC = {"dim": 16, "decoder": {"kind": "Stack", "blocks": [_BLOCK], "layers": 2}, "head": {"kind": "LMHead"}}
DRY = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of unequal lengths, in which the next word is known after the first."""
    draw = random.Random(seed)
    starts = ((draw.randrange(len(WORDS)), draw.randrange(3, 20)) for _ in range(count))
    return [" ".join(WORDS[(start + i) % len(WORDS)] for i in range(length)) for start, length in starts]


def rows_of(path: Path, rows: list[dict[str, Any]]) -> None:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(folder: Path, count: int = 40) -> None:
    """train.jsonl and valid.jsonl."""
    for name, seed, lines in (("train", 0, count), ("valid", 1, 6)):
        rows_of(folder / f"{name}.jsonl", [{"text": text} for text in texts(lines, seed)])


def recipe(folder: Path, **changes: Any) -> Recipe:
    """A language model of few words, for a few steps."""
    least = {
        "name": "tiny",
        "model": {"config": {**GPT2, **DRY}},
        "tokenizer": {"train": "word"},
        "data": {"root": str(folder), "train": "train.jsonl"},
        "objective": {"kind": "causal"},
        "batch": {"sequences": 4},
        "train": {"steps": 8, "lr": 1e-2},
        "watch": {"log_every": 1},
    }
    return Recipe.model_validate(merge(least, changes))
