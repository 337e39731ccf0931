"""Sequence to sequence: samples, what the decoder reads, transformers' loss, and any cutting of a batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.train import recipe
from qkv.train.objective import Feed
from qkv.train.translate import Translate
from tests.families.reference import case
from tests.train import small

DRAW = np.random.default_rng(0)
T5 = case("t5", "tiny").ours.spec


def translate(
    tokenizer: Tokenizer | None = None, length: int | None = None, model: spec.Model = T5, **settings: Any
) -> Translate:
    return Translate(recipe.Translate(kind="seq2seq", **settings), model, tokenizer or small.t5(), length)


def records(sources: list[str], targets: list[str]) -> list[dict[str, str]]:
    return [{"source": a, "target": b} for a, b in zip(sources, targets, strict=True)]


RAGGED = records(small.texts(3, 9, 1, 14, 6, 2, 9, 5), small.texts(5, 2, 8, 1, 11, 4, 4, 7))


def feed(objective: Translate, *given: dict[str, Any]) -> Feed:
    return objective.collate([one for record in given for one in objective.encode(record)], DRAW)


def lists(rows: Any) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_what_encoder_and_decoder_read() -> None:
    given = feed(translate(), {"source": "w5 w6", "target": "w7 w8 w9"}, {"source": "w5", "target": "w4"})
    assert lists(given.ids) == [[5, 6, 1], [5, 1]]
    assert given.target is not None
    assert lists(given.target) == [[0, 7, 8, 9], [0, 4]]
    assert given.labels.tolist() == [7, 8, 9, 1, 4, 1]
    assert (given.targets, given.tokens) == (6, 11)
    sample = translate().encode({"source": "w5 w6", "target": "w7"})[0]
    assert translate().size(sample) == 5


def test_the_prefix_and_what_the_tokenizer_puts_around() -> None:
    assert translate(prefix="w3 w4 ").encode({"source": "w5", "target": "w6"})[0]["ids"].tolist() == [3, 4, 5, 1]
    given = feed(translate(small.bart(), model=case("bart", "tiny").ours.spec), {"source": "w5", "target": "w6"})
    assert given.labels.tolist() == [0, 6, 2]
    assert given.target is not None
    assert lists(given.target) == [[2, 0, 6]]
    plain = feed(translate(small.gpt()), {"source": "w5", "target": "w6"})  # no frame: the end is ours to add
    assert lists(plain.ids) == [[5]]
    assert plain.labels.tolist() == [6, 0]


@pytest.mark.parametrize("long", ["source", "target"])
def test_long_texts(long: str) -> None:
    record = {"source": "w5", "target": "w6", long: small.text(*range(10, 20))}
    with pytest.raises(InputError, match=f"{long} has 11 tokens; the most is 4"):
        translate(length=4).encode(record)
    cut, dropping = translate(length=4, on_long="truncate"), translate(length=4, on_long="drop")
    sample = cut.encode(record)[0]
    assert sample["ids" if long == "source" else "target"].tolist() == [10, 11, 12, 1]
    assert sample["target" if long == "source" else "ids"].tolist() == [6 if long == "source" else 5, 1]
    assert dropping.encode(record) == []
    assert (cut.cut, dropping.dropped) == (1, 1)
    with pytest.raises(ConfigError, match="window"):
        translate(on_long="window")


@pytest.mark.parametrize("bad", [{}, {"source": "w5"}, {"source": "w5", "target": ""}, {"source": 1, "target": "w5"}])
def test_bad_records(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        translate().encode(bad)


def test_models_and_tokenizers_that_cannot() -> None:
    with pytest.raises(ConfigError, match="an encoder–decoder"):
        translate(model=case("llama", "tiny").ours.spec)
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        translate(model=replace(T5, start=None))
    with pytest.raises(ConfigError, match="no eos"):
        translate(train_tokenizer(["abc"], "char"))


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "pegasus", "mt5"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_transformers(name: str, smoothing: float) -> None:
    made = case(name, "tiny")
    objective = translate(model=made.ours.spec, smoothing=smoothing)
    given = feed(objective, *RAGGED)
    with torch.no_grad():
        ours = objective.loss(made.ours, given)
    read, target = given.ids, given.target
    assert isinstance(read, list)
    assert isinstance(target, list)
    asked = {
        "input_ids": small.padded(read),
        "attention_mask": small.padded([torch.ones_like(row) for row in read]),
        "labels": small.grid(given.labels, target),
    }
    if not smoothing:
        mean = small.theirs(made.theirs, **asked)
        torch.testing.assert_close(ours / given.targets, mean, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits = made.theirs(**asked).logits
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), asked["labels"].flatten(), label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_one_batch_of_eight_is_four_of_two(name: str) -> None:
    model = case(name, "tiny").ours
    objective = translate(model=model.spec, smoothing=0.1)
    whole, parts = feed(objective, *RAGGED), [feed(objective, *RAGGED[i : i + 2]) for i in range(0, 8, 2)]
    assert sum(part.targets for part in parts) == whole.targets
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(given: Feed) -> list[torch.Tensor]:
        return list(
            torch.autograd.grad(objective.loss(model, given) / whole.targets, parameters, materialize_grads=True)
        )

    for expected, *each in zip(gradients(whole), *map(gradients, parts), strict=True):
        torch.testing.assert_close(sum(each), expected, atol=2e-6, rtol=1e-5)
