"""T5's span corruption and prefixes: the noise's numbers, that nothing is lost, and transformers' loss."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.nn.head import IGNORED
from qkv.train import recipe
from qkv.train.objective import Feed, Sample
from qkv.train.spans import Prefix, Spans, corrupted, noise, replaced, sentinels
from tests.families.reference import case
from tests.train import small

T5 = case("t5", "tiny").ours.spec
GPT = case("gpt2", "tiny").ours.spec
LONG = {"text": small.text(*(3 + i % 70 for i in range(40)))}


def spans(tokenizer: Tokenizer | None = None, length: int | None = None, **settings: Any) -> Spans:
    return Spans(recipe.Spans(kind="spans", **settings), T5, tokenizer or small.t5(), length)


def prefix(model: Any = T5, tokenizer: Tokenizer | None = None, **settings: Any) -> Prefix:
    return Prefix(recipe.Prefix(kind="prefix", **settings), model, tokenizer or small.t5(), None)


def sample(length: int) -> Sample:
    return {"ids": (3 + np.arange(length) % 70).astype(np.int32)}


def ids(rows: Any) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_the_example_of_the_paper() -> None:
    """Figure 2: Thank you for inviting me to your party last week."""
    hidden = np.array([0, 0, 1, 1, 0, 0, 0, 0, 1, 0], bool)
    words = np.arange(10, 20, dtype=np.int32)
    names = np.array([96, 95], np.int32)
    assert replaced(words, hidden, names).tolist() == [10, 11, 96, 14, 15, 16, 17, 95, 19]
    assert spans()._said(words, hidden).tolist() == [96, 12, 13, 95, 18]


@given(st.integers(2, 600), st.floats(0.01, 0.99), st.floats(1, 20), st.integers(0, 99))
def test_how_much_is_hidden(length: int, rate: float, mean: float, seed: int) -> None:
    hidden = corrupted(length, rate, mean, np.random.default_rng(seed))
    count, parts = noise(length, rate, mean)
    assert len(hidden) == length
    assert hidden.sum() == count == min(max(round(length * rate), 1), length - 1)
    begins = hidden & ~np.concatenate(([False], hidden[:-1]))
    assert begins.sum() == parts
    assert parts == max(1, min(round(count / mean), length - count))
    assert hidden[-1]
    assert not hidden[0], "T5's masks begin with what is kept"


def test_the_papers_numbers() -> None:
    """15 % in spans of 3: T5 reads 512 tokens made of 568, whose target has 114 (both with an end)."""
    assert noise(568, 0.15, 3.0) == (85, 28)
    objective = spans(small.t5(40))
    one = sample(568)
    given = objective.collate([one], np.random.default_rng(0))
    assert [len(row) for row in given.ids] == [512]
    assert given.targets == 114
    assert given.tokens == objective.size(one) == 626


def test_each_place_is_hidden_as_often_as_t5_hides_it() -> None:
    """Of 12 tokens 4 in 2 spans: all partings into (kept, hidden, kept, hidden) are equally likely."""
    draw = np.random.default_rng(0)
    found = np.mean([corrupted(12, 1 / 3, 2.0, draw) for _ in range(4000)], 0)
    every = [
        np.repeat([0, 1, 0, 1], [a, b, 8 - a, 4 - b]) for a in range(1, 8) for b in range(1, 4)
    ]  # kept and hidden tokens in two parts each
    np.testing.assert_allclose(found, np.mean(every, 0), atol=0.03)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.floats(0.05, 0.6), st.floats(1, 5), st.integers(0, 9))
def test_source_and_target_give_the_text_back(lengths: list[int], rate: float, mean: float, seed: int) -> None:
    objective = spans(small.t5(30), rate=rate, mean=mean)
    samples = [sample(length) for length in lengths]
    given = objective.collate(samples, np.random.default_rng(seed))
    names = objective.names.tolist()
    targets = [row.tolist() for row in given.labels.split([len(row) for row in given.target or ()])]
    for one, source, target in zip(samples, ids(given.ids), targets, strict=True):
        assert source.pop() == target.pop() == 1
        assert (
            [x for x in source if x in names]
            == [x for x in target if x in names]
            == names[: noise_spans(one, rate, mean)]
        )
        said: dict[int, list[int]] = {}
        for token in target:
            if token in names:
                said[token] = []
            else:
                said[list(said)[-1]].append(token)
        text = [token for place in source for token in said.get(place, [place])]
        assert text == one["ids"].tolist()
    assert given.tokens == sum(map(objective.size, samples))


def noise_spans(one: Sample, rate: float, mean: float) -> int:
    return noise(len(one["ids"]), rate, mean)[1] if len(one["ids"]) > 1 else 0


def test_the_decoder_reads_the_target_one_place_late() -> None:
    given = spans().collate([sample(20)], np.random.default_rng(0))
    assert given.target is not None
    assert ids(given.target)[0] == [0, *given.labels.tolist()[:-1]]
    assert given.labels[0] == sentinels(small.t5())[0] == 96


def test_other_noise_each_time_and_the_same_from_the_same_generator() -> None:
    objective, one = spans(), sample(40)
    draw = np.random.default_rng(1)
    first, second = (ids(objective.collate([one], draw).ids) for _ in range(2))
    assert first != second
    assert first == ids(objective.collate([one], np.random.default_rng(1)).ids)


def test_long_texts_leave_room_for_noise_and_end() -> None:
    with pytest.raises(InputError, match="42 tokens; the most is 12"):
        spans(length=12).encode(LONG)
    parts = spans(length=12, on_long="window").encode(LONG)
    assert [len(one["ids"]) for one in parts] == [10, 10, 10, 10]
    for seed in range(20):
        given = spans(length=12, rate=0.5, mean=1.0).collate(parts, np.random.default_rng(seed))
        assert max(map(len, given.ids)) <= 12
        assert max(map(len, given.target or ())) <= 20


def test_what_cannot_be_corrupted() -> None:
    with pytest.raises(ConfigError, match="<extra_id_0>"):
        spans(small.bart())
    with pytest.raises(ConfigError, match="an encoder–decoder"):
        Spans(recipe.Spans(kind="spans"), GPT, small.t5(), None)
    with pytest.raises(InputError, match=r"6 spans, and the tokenizer names 2.*batch.length"):
        spans(small.t5(2), mean=1.0).encode(LONG)
    with pytest.raises(InputError, match="one token"):
        spans().encode({"text": "w5"})


def test_the_loss_of_transformers() -> None:
    made = case("t5", "tiny")
    objective = spans()
    samples = [one for text in small.texts(30, 3, 12) for one in objective.encode({"text": text})]
    given = objective.collate(samples, np.random.default_rng(0))
    with torch.no_grad():
        ours = objective.loss(made.ours, given) / given.targets
    check_against(made.theirs, given, ours)


def check_against(theirs: Any, given: Feed, ours: torch.Tensor) -> None:
    assert isinstance(given.ids, list)
    assert isinstance(given.target, list)
    mask = small.padded([torch.ones_like(row) for row in given.ids])
    labels = small.grid(given.labels, given.target)
    mean = small.theirs(theirs, input_ids=small.padded(given.ids), attention_mask=mask, labels=labels)
    torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-5)


# --- prefixes -------------------------------------------------------------------------------------------------------


def test_an_encoder_reads_the_prefix() -> None:
    objective = prefix()
    samples = [sample(9), sample(2)]
    given = objective.collate(samples, np.random.default_rng(0))
    targets = given.labels.split([len(row) for row in given.target or ()])
    for one, source, target in zip(samples, ids(given.ids), targets, strict=True):
        assert source[-1] == target[-1] == 1
        assert [*source[:-1], *target.tolist()[:-1]] == one["ids"].tolist()
        assert len(source) > 1 < len(target)
    made = case("t5", "tiny")
    with torch.no_grad():
        check_against(made.theirs, given, objective.loss(made.ours, given) / given.targets)


def test_a_decoder_reads_all_and_learns_the_end() -> None:
    framed = small.worded({"bos": "<s>", "eos": "</s>", "unk": "[UNK]"}, "<s> $A")
    objective = prefix(GPT, framed)
    for seed in range(20):
        given = objective.collate([sample(6)], np.random.default_rng(seed))
        assert ids(given.ids) == [[0, 3, 4, 5, 6, 7, 8]]
        labels = given.labels.tolist()
        cut = labels.count(IGNORED)
        assert 1 <= cut <= 5
        assert labels == [IGNORED] * cut + [3, 4, 5, 6, 7, 8, 1][cut:]
        assert given.targets == 7 - cut


def test_cuts_are_anywhere() -> None:
    draw = np.random.default_rng(0)
    found = [len(ids(prefix().collate([sample(5)], draw).ids)[0]) - 1 for _ in range(400)]
    assert set(found) == {1, 2, 3, 4}
    assert min(found.count(cut) for cut in range(1, 5)) > 70


def test_what_cannot_have_a_prefix() -> None:
    with pytest.raises(ConfigError, match="a decoder alone"):
        prefix(case("bert", "tiny").ours.spec, small.bert())
    with pytest.raises(InputError, match="one token"):
        prefix().encode({"text": "w5"})
