"""Causal language models: samples, labels, transformers' loss, and any cutting of a batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.gguf_tokenizer import build
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.nn.head import IGNORED
from qkv.nn.stack import Transformer
from qkv.train import recipe
from qkv.train.causal import Causal, closing, rows, shifted
from qkv.train.objective import Feed, Objective
from tests.families.reference import case
from tests.inputs.samples import sentencepiece
from tests.tiny import tiny_spec
from tests.train import small

MODEL = replace(tiny_spec(), vocab=small.SIZE)
DRAW = np.random.default_rng(0)


def causal(tokenizer: Tokenizer | None = None, length: int | None = None, **settings: Any) -> Causal:
    return Causal(recipe.Causal(kind="causal", **settings), MODEL, tokenizer or small.gpt(), length)


def feed(objective: Objective, *records: dict[str, Any]) -> Feed:
    return objective.collate([one for record in records for one in objective.encode(record)], DRAW)


def ids(feed: Feed) -> list[list[int]]:
    return [row.tolist() for row in feed.ids]  # type: ignore[union-attr]


def gradients(total: Tensor, model: Transformer) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(model.parameters())))


def test_a_text_ends_and_each_token_is_guessed_from_those_before() -> None:
    given = feed(causal(), {"text": "w5 w6 w7"}, {"text": "w8"})
    assert ids(given) == [[5, 6, 7], [8]]
    assert given.labels.tolist() == [6, 7, 0, 0]
    assert (given.targets, given.tokens) == (4, 4)
    assert given.segments is given.target is None


def test_what_the_tokenizer_puts_around() -> None:
    framed = small.worded({"bos": "<s>", "eos": "</s>", "unk": "[UNK]"}, "<s> $A")
    assert ids(feed(causal(framed), {"text": "w5 w6"})) == [[0, 5, 6]]
    assert causal(framed).encode({"text": "w5"})[0]["ids"].tolist() == [0, 5, 1]
    assert closing(small.t5()) == []  # its frame has it
    nameless = train_tokenizer(["abc"], "char")
    assert closing(nameless) == []
    assert causal(nameless).encode({"text": "abc"})[0]["ids"].tolist() == nameless.encode("abc")


def test_only_an_answer_is_learned() -> None:
    given = feed(causal(), {"text": "w5 w6 w7", "answer": "w8 w9"}, {"text": "w5 w6", "answer": None})
    assert ids(given) == [[5, 6, 7, 8, 9], [5, 6]]
    assert given.labels.tolist() == [IGNORED, IGNORED, 8, 9, 0, 6, 0]
    assert given.targets == 5


def test_an_answer_follows_as_it_does_in_generating() -> None:
    tokenizer = Tokenizer(**build(sentencepiece()))
    objective = Causal(recipe.Causal(kind="causal"), replace(MODEL, vocab=tokenizer.vocab_size), tokenizer, None)
    sample = objective.encode({"text": "the cat", "answer": " is in"})[0]
    start = int(sample["learned"][0])
    assert sample["ids"][:start].tolist() == tokenizer.encode("the cat")
    assert sample["ids"].tolist() == [*tokenizer.encode("the cat is in"), tokenizer.eos[0]]
    letters = train_tokenizer(["aab aa bb"], "bpe", 259)
    assert len(letters.encode("aab")) < len(letters.encode("a")) + len(letters.encode("ab")), "aa is a token"
    objective = Causal(recipe.Causal(kind="causal"), replace(MODEL, vocab=letters.vocab_size), letters, None)
    sample = objective.encode({"text": "a", "answer": "ab"})[0]
    assert sample["ids"].tolist() == [*letters.encode("a"), *letters.encode("ab"), *letters.eos]
    assert sample["learned"].tolist() == [1]


def test_long_texts() -> None:
    record = {"text": small.text(*range(5, 15))}  # and its end: 11
    with pytest.raises(InputError, match=r"11 tokens; the most is 4 \(batch.length\)"):
        causal(length=4).encode(record)
    cut = causal(length=4, on_long="truncate")
    assert [one["ids"].tolist() for one in cut.encode(record)] == [[5, 6, 7, 8]]  # which is no end
    parts = causal(length=4, on_long="window")
    assert [one["ids"].tolist() for one in parts.encode(record)] == [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 0]]
    dropping = causal(length=4, on_long="drop")
    assert dropping.encode(record) == []
    assert (cut.cut, parts.cut, dropping.dropped) == (1, 1, 1)


def test_long_texts_with_answers() -> None:
    record = {"text": "w5 w6 w7", "answer": "w8 w9 w10"}
    sample = causal(length=5, on_long="truncate").encode(record)[0]
    assert (sample["ids"].tolist(), sample["learned"].tolist()) == ([5, 6, 7, 8, 9], [3])
    with pytest.raises(InputError, match="nothing of its answer"):
        causal(length=3, on_long="truncate").encode(record)
    with pytest.raises(InputError, match="windows"):
        causal(length=5, on_long="window").encode(record)
    assert causal(length=5, on_long="drop").encode(record) == []


def test_packed_texts_stay_whole() -> None:
    objective = causal(length=4)
    objective.packed = True
    sample = objective.encode({"text": small.text(*range(5, 15))})[0]
    assert list(sample) == ["ids"]
    assert len(sample["ids"]) == 11
    with pytest.raises(InputError, match="packing"):
        objective.encode({"text": "w5", "answer": "w6"})
    block = shifted([np.array([7, 8, 0, 9], np.int32), np.array([9], np.int32)], [0, 0])
    assert ids(block) == [[7, 8, 0], [9]]
    assert block.labels.tolist() == [8, 0, 9, IGNORED]
    assert block.targets == 3


def test_rows_share_their_memory() -> None:
    one, two = rows([np.array([1, 2], np.int32), np.array([3], np.int32)])
    assert (one.dtype, one.tolist(), two.tolist()) == (torch.int64, [1, 2], [3])
    assert one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()


@pytest.mark.parametrize("bad", [{}, {"text": 3}, {"text": " "}, {"text": None}, {"text": "w5", "answer": 4}])
def test_bad_records(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        causal().encode(bad)


def test_models_that_cannot() -> None:
    def made(model: spec.Model) -> Causal:
        return Causal(recipe.Causal(kind="causal"), model, small.gpt(), None)

    with pytest.raises(ConfigError, match="a decoder alone with an LMHead"):
        made(case("bert", "tiny").ours.spec)
    with pytest.raises(ConfigError, match="a decoder alone"):
        made(case("t5", "tiny").ours.spec)
    with pytest.raises(ConfigError, match="causal masks"):
        made(tiny_spec(spec.Attention(4, 2), spec.Attention(4, 2, mask=spec.Full())))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_transformers(name: str, smoothing: float) -> None:
    made = case(name, "tiny")
    objective = Causal(recipe.Causal(kind="causal", smoothing=smoothing), made.ours.spec, small.gpt(), None)
    answered = [{"text": text, "answer": "w3 w90"} for text in small.texts(9, 4)]
    given = feed(objective, *({"text": text} for text in small.texts(3, 14, 7, 1)), *answered)
    with torch.no_grad():
        ours = objective.loss(made.ours, given)
    read = given.ids
    assert isinstance(read, list)
    mask = small.padded([torch.ones_like(row) for row in read])
    logits = made.theirs(input_ids=small.padded(read), attention_mask=mask).logits
    labels = small.grid(given.labels, read)
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="sum"
    )
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    if not smoothing:  # transformers shifts by itself: it wants the ids with their last one, and labels that are they
        whole = [
            torch.cat((row, own[-1:])) for row, own in zip(read, given.labels.split([*map(len, read)]), strict=True)
        ]
        own = [torch.cat((own.new_full((1,), IGNORED), own)) for own in given.labels.split([*map(len, read)])]
        mask = small.padded([torch.ones_like(row) for row in whole])
        mean = small.theirs(
            made.theirs, input_ids=small.padded(whole), attention_mask=mask, labels=small.padded(own, IGNORED)
        )
        torch.testing.assert_close(ours / given.targets, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_one_batch_of_eight_is_four_of_two(name: str) -> None:
    model = case(name, "tiny").ours
    objective = Causal(recipe.Causal(kind="causal", smoothing=0.1), model.spec, small.gpt(), None)
    samples = [one for text in small.texts(3, 14, 7, 1, 9, 9, 2, 11) for one in objective.encode({"text": text})]
    whole = objective.collate(samples, DRAW)
    parts = [objective.collate(samples[i : i + 2], DRAW) for i in range(0, 8, 2)]
    assert sum(part.targets for part in parts) == whole.targets
    wanted = gradients(objective.loss(model, whole) / whole.targets, model)
    found = [gradients(objective.loss(model, part) / whole.targets, model) for part in parts]
    for expected, *each in zip(wanted, *found, strict=True):
        torch.testing.assert_close(sum(each), expected, atol=1e-6, rtol=1e-5)


def test_autocast() -> None:
    model = case("llama", "tiny").ours
    objective = Causal(recipe.Causal(kind="causal"), model.spec, small.gpt(), None)
    given = feed(objective, *({"text": text} for text in small.texts(3, 14)))
    with torch.autocast("cpu", torch.bfloat16):
        total = objective.loss(model, given)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, objective.loss(model, given), rtol=0.02, atol=0)
