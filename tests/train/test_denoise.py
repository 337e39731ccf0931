"""BART's noise: how much of it, that nothing else changes, and transformers' loss."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qkv.errors import ConfigError, InputError
from qkv.inputs.train import train_tokenizer
from qkv.train import recipe
from qkv.train.denoise import Denoise, deleted, infilled, rotated, shuffled
from tests.families.reference import case
from tests.train import small

MASK = 4
BART = case("bart", "tiny").ours.spec
QUIET = {"rate": 0.0, "shuffle": False}


def denoise(**settings: Any) -> Denoise:
    return Denoise(recipe.Denoise(kind="denoise", **settings), BART, small.bart(), None)


def numbers(length: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(10, 10 + length, dtype=np.int32)


@given(st.integers(1, 80), st.floats(0, 1), st.floats(0.5, 8), st.integers(0, 99))
def test_infilling_hides_what_it_should_and_keeps_the_rest(length: int, rate: float, mean: float, seed: int) -> None:
    out = infilled(numbers(length), rate, mean, MASK, np.random.default_rng(seed))
    kept = out[out != MASK]
    hidden = round(length * rate)
    assert len(kept) == length - hidden
    assert (np.diff(kept) > 0).all()
    assert len(out) <= length
    assert (len(out) > len(kept)) == (hidden > 0)


def test_spans_are_as_poisson_draws_them() -> None:
    draw = np.random.default_rng(0)
    lengths: Counter[int] = Counter()
    for _ in range(300):
        out = infilled(numbers(200), 0.3, 3.0, MASK, draw)
        places = np.flatnonzero(out == MASK)
        around = np.concatenate(([9], out, [210]))
        lengths.update((around[places + 2] - around[places] - 1).tolist())
    total = sum(lengths.values())
    assert 0.04 < lengths[0] / total < 0.07  # e⁻³ = 0.050
    assert 0.2 < lengths[3] / total < 0.25  # 0.224
    assert abs(total / 300 - 20) < 1.5


def test_sentences_change_places() -> None:
    begins = np.array([0, 3, 5], np.int32)
    found = {tuple(shuffled(numbers(8), begins, np.random.default_rng(i)).tolist()) for i in range(60)}
    assert len(found) == 6
    for one in found:
        assert sorted(one) == numbers(8).tolist()
        assert "10 11 12" in " ".join(map(str, one))
    assert shuffled(numbers(3), np.array([0], np.int32), np.random.default_rng(0)).tolist() == [10, 11, 12]


def test_deletion_and_rotation() -> None:
    draw = np.random.default_rng(0)
    out = deleted(numbers(20), 0.25, draw)
    assert len(out) == 15
    assert (np.diff(out) > 0).all()
    assert len(deleted(numbers(3), 1.0, draw)) == 1
    found = {tuple(rotated(numbers(3), draw).tolist()) for _ in range(50)}
    assert found == {(10, 11, 12), (11, 12, 10), (12, 10, 11)}


def test_a_batch() -> None:
    objective = denoise()
    samples = [one for text in small.texts(20, 7) for one in objective.encode({"text": text})]
    feed = objective.collate(samples, np.random.default_rng(0))
    assert feed.target is not None
    targets = feed.labels.split([len(row) for row in feed.target])
    for one, source, read, target in zip(samples, feed.ids, feed.target, targets, strict=True):
        assert target.tolist() == [0, *one["ids"].tolist(), 2]
        assert read.tolist() == [2, *target.tolist()[:-1]]  # type: ignore[union-attr]
        assert MASK in source.tolist()  # type: ignore[union-attr]
        assert (source[0], source[-1]) == (0, 2)
    assert feed.targets == 31
    assert feed.tokens <= sum(map(objective.size, samples))


def test_each_noise_alone() -> None:
    record = {"text": small.texts(12)[0]}

    def source(**settings: Any) -> list[int]:
        objective = denoise(**settings)
        rows = objective.collate(objective.encode(record), np.random.default_rng(3)).ids
        return rows[0].tolist()[1:-1]  # type: ignore[union-attr]

    text = source(**QUIET)
    assert text == denoise().encode(record)[0]["ids"].tolist()
    gone = source(rate=0.0, shuffle=False, delete=0.25)
    assert len(gone) == 9
    turned = source(rate=0.0, shuffle=False, rotate=1.0)
    assert turned != text
    assert turned in [text[i:] + text[:i] for i in range(12)]
    assert source(rate=0.0) == text  # one sentence


def test_sentences_of_a_text() -> None:
    said = "One two. Three four! Five"
    tokenizer = train_tokenizer([said], "bpe", 261, special_tokens={"bos": "<s>", "eos": "</s>", "mask": "<mask>"})
    objective = Denoise(recipe.Denoise(kind="denoise", rate=0.0), BART, tokenizer, None)
    samples = objective.encode({"text": said})
    assert len(samples[0]["begins"]) == 3
    found = set()
    for seed in range(60):
        rows = objective.collate(samples, np.random.default_rng(seed)).ids
        found.add(tokenizer.decode(rows[0].tolist()))  # type: ignore[union-attr]
    assert len(found) == 6
    assert " Three four! FiveOne two." in found


def test_windows() -> None:
    settings = recipe.Denoise(kind="denoise", on_long="window")
    objective = Denoise(settings, BART, small.bart(), 8)
    samples = objective.encode({"text": small.texts(13)[0]})
    assert [len(one["ids"]) for one in samples] == [6, 6, 2]  # the last has one that the one before has, too
    for seed in range(20):
        assert max(map(len, objective.collate(samples, np.random.default_rng(seed)).ids)) <= 8


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="no mask token"):
        Denoise(recipe.Denoise(kind="denoise"), BART, small.t5(), None)
    with pytest.raises(ConfigError, match="an encoder–decoder"):
        Denoise(recipe.Denoise(kind="denoise"), case("gpt2", "tiny").ours.spec, small.bart(), None)
    with pytest.raises(InputError):
        denoise().encode({"text": ""})
    with pytest.raises(ValidationError, match=r"mean"):
        recipe.Denoise(kind="denoise", mean=0.1)


def test_the_loss_of_transformers() -> None:
    made, objective = case("bart", "tiny"), denoise()
    samples = [one for text in small.texts(20, 3, 12) for one in objective.encode({"text": text})]
    feed = objective.collate(samples, np.random.default_rng(0))
    assert isinstance(feed.ids, list)
    assert isinstance(feed.target, list)
    with torch.no_grad():
        ours = objective.loss(made.ours, feed) / feed.targets
    mask = small.padded([torch.ones_like(row) for row in feed.ids])
    labels = small.grid(feed.labels, feed.target)
    mean = small.theirs(made.theirs, input_ids=small.padded(feed.ids), attention_mask=mask, labels=labels)
    torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-5)
