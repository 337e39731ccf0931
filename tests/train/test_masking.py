"""Masked language models and next sentences: which tokens, what becomes of them, whose loss."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.nn.head import IGNORED
from qkv.train import recipe
from qkv.train.masking import Masked, Noise
from qkv.train.objective import Feed, Sample
from tests.families.reference import case
from tests.train import small

BERT = case("bert", "tiny").ours.spec
BOTH = case("bert", "BertForPreTraining").ours.spec
MASK = 4
TOKENIZER = small.bert()
SPECIALS = set(TOKENIZER.specials.values())


def settings(**changes: Any) -> recipe.Masked:
    return recipe.Masked(kind="masked", **changes)


def masked(
    length: int | None = None, model: spec.Model = BERT, tokenizer: Tokenizer = TOKENIZER, **said: Any
) -> Masked:
    return Masked(settings(**said), model, tokenizer, length)


def samples(objective: Masked, *lengths: int) -> list[Sample]:
    return [one for text in small.texts(*lengths) for one in objective.encode({"text": text})]


def noised(
    said: recipe.Masked, n: int, seed: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    ids = (10 + np.arange(n) % 80).astype(np.int32)
    return ids, *Noise(said, TOKENIZER)(ids, np.arange(n, dtype=np.int32), np.random.default_rng(seed))


def test_the_shares_of_each_fate() -> None:
    ids, read, labels = noised(settings(), 200_000)
    chosen = labels != IGNORED
    assert chosen.sum() in (30_000, 30_001)
    assert (labels[chosen] == ids[chosen]).all()
    assert (read[~chosen] == ids[~chosen]).all()
    fates = read[chosen]
    other = (fates != MASK) & (fates != ids[chosen])
    assert (fates == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert other.mean() == pytest.approx(0.1 * 91 / 92, abs=0.01)
    assert set(fates[other].tolist()) == set(range(5, 97)), "any token, and no special one"


@given(st.integers(1, 40), st.floats(0.05, 0.5), st.integers(0, 99))
def test_as_many_as_the_rate_says_and_at_least_one(n: int, rate: float, seed: int) -> None:
    _, _, labels = noised(settings(rate=rate), n, seed)
    assert int(n * rate) <= (labels != IGNORED).sum() <= max(1, int(n * rate) + 1)
    assert (labels != IGNORED).any()


def test_short_texts_are_masked_at_the_same_rate() -> None:
    counts = [(noised(settings(), 10, seed)[2] != IGNORED).sum() for seed in range(2000)]
    assert np.mean(counts) == pytest.approx(1.5, abs=0.05)


def test_other_shares() -> None:
    _, read, labels = noised(settings(mask=0.0, random=0.0, rate=0.5), 100)
    assert (labels != IGNORED).sum() in (50, 51)
    assert MASK not in read
    _, read, labels = noised(settings(mask=1.0, random=0.0, rate=0.5), 100)
    assert ((labels != IGNORED) == (read == MASK)).all()


def test_special_tokens_are_never_chosen() -> None:
    objective = masked(rate=0.9, mask=1.0, random=0.0)
    feed = objective.collate(samples(objective, 9, 4, 1), np.random.default_rng(0))
    rows = [row.tolist() for row in feed.ids]  # type: ignore[union-attr]
    assert all((row[0], row[-1]) == (2, 3) for row in rows)
    assert not SPECIALS & set(feed.labels[feed.labels != IGNORED].tolist())
    assert feed.tokens == 20 == len(feed.labels) == sum(map(objective.size, samples(objective, 9, 4, 1)))
    assert feed.targets == (feed.labels != IGNORED).sum()
    assert feed.segments is not None
    assert [row.tolist() for row in feed.segments] == [[0] * len(row) for row in rows]


def collated(objective: Masked, given: list[Sample], seed: int) -> list[int]:
    return torch.cat(list(objective.collate(given, np.random.default_rng(seed)).ids)).tolist()  # type: ignore[arg-type]


def test_dynamic_masks_change_and_static_ones_stay() -> None:
    moving, still = masked(), masked(dynamic=False)
    given = samples(moving, 30, 20)
    assert len({tuple(collated(moving, given, seed)) for seed in range(5)}) == 5
    assert len({tuple(collated(still, given, seed)) for seed in range(5)}) == 1
    assert collated(still, given[::-1], 3) == [*collated(still, given[1:], 0), *collated(still, given[:1], 0)]
    assert collated(moving, given, 3) == collated(moving, given, 3)


@pytest.mark.parametrize("dynamic", [True, False])
def test_whole_words(dynamic: bool) -> None:
    words = [f"{'abcdefgh'[i % 8]}{'xyz' * (i % 3)}" for i in range(40)]
    tokenizer = train_tokenizer([" ".join(words)], "wordpiece", 27)
    model = replace(BERT, vocab=tokenizer.vocab_size, context=None)
    objective = masked(model=model, tokenizer=tokenizer, whole_words=True, dynamic=dynamic, mask=1.0, random=0.0)
    given = objective.encode({"text": " ".join(words)})
    own = given[0]["words"]
    sizes = np.bincount(own)
    assert len(sizes) == 40
    assert sizes.max() > 1, "some words have several tokens"
    counts = []
    for seed in range(200):
        hidden = (objective.collate(given, np.random.default_rng(seed)).labels != IGNORED).numpy()[1:-1]
        assert all(hidden[own == word].all() for word in set(own[hidden].tolist()))
        counts.append(hidden.sum())
    assert np.mean(counts) == pytest.approx(0.15 * len(own), abs=0.6)
    one = objective.encode({"text": "axyzxyz"})
    feed = objective.collate(one, np.random.default_rng(0))
    assert feed.targets == len(one[0]["ids"]), "the only word there is"


def test_long_texts() -> None:
    assert [len(one["ids"]) for one in samples(masked(8, on_long="window"), 14)] == [6, 6, 2]
    assert [len(one["ids"]) for one in samples(masked(8, on_long="truncate"), 14)] == [6]
    with pytest.raises(InputError, match="16 tokens; the most is 8"):
        samples(masked(8), 14)
    with pytest.raises(InputError, match="66 tokens; the most is 64"):
        samples(masked(), 64)


MODELS = ["bert", "roberta", "albert", "distilbert", "mpnet"]


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_of_transformers(name: str) -> None:
    made = case(name, "tiny")
    objective = masked(model=made.ours.spec)
    feed = objective.collate(samples(objective, 3, 14, 30, 1), np.random.default_rng(0))
    assert isinstance(feed.ids, list)
    with torch.no_grad():
        ours = objective.loss(made.ours, feed) / feed.targets
    mask = small.padded([torch.ones_like(row) for row in feed.ids])
    read = small.padded(feed.ids, made.theirs.config.pad_token_id)
    mean = small.theirs(made.theirs, input_ids=read, attention_mask=mask, labels=small.grid(feed.labels, feed.ids))
    torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "said"), [(BERT, {}), (BOTH, {"next_sentence": True, "smoothing": 0.1})])
def test_the_loss_of_a_batch_is_that_of_its_parts(model: spec.Model, said: dict[str, Any]) -> None:
    ours = case("bert", "tiny" if model is BERT else "BertForPreTraining").ours
    objective = masked(model=model, **said)
    feed = objective.collate(samples(objective, 3, 14, 9, 5, 12, 7, 2, 20), np.random.default_rng(0))
    assert isinstance(feed.ids, list)
    assert isinstance(feed.segments, list)
    labels = feed.labels if isinstance(feed.labels, tuple) else (feed.labels,)
    rows = labels[0].split([len(row) for row in feed.ids])
    parts = []
    for i in range(0, 8, 2):
        part = slice(i, i + 2)
        own: Any = (torch.cat(rows[part]), *(x[part] for x in labels[1:]))
        given = Feed(feed.ids[part], own if len(own) > 1 else own[0], 0, 0, segments=feed.segments[part])
        parts.append(objective.loss(ours, given) / feed.targets)
    parameters = list(ours.parameters())
    whole = torch.autograd.grad(objective.loss(ours, feed) / feed.targets, parameters, materialize_grads=True)
    found = torch.autograd.grad(torch.stack(parts).sum(), parameters, materialize_grads=True)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


# --- next sentences -------------------------------------------------------------------------------------------------


def halves(feed: Feed) -> list[tuple[list[int], list[int]]]:
    """The texts of each pair, from its segments and special tokens."""
    found = []
    for row in feed.ids:
        ids = row.tolist()  # type: ignore[union-attr]
        middle = ids.index(3)
        found.append((ids[1:middle], ids[middle + 1 : -1]))
    return found


def test_pairs_that_follow_and_pairs_that_do_not() -> None:
    objective = masked(model=BOTH, next_sentence=True, mask=0.0, random=0.0)
    given = samples(objective, 6, 9, 12, 7)
    texts = [one["ids"].tolist() for one in given]
    draw, seen = np.random.default_rng(0), []
    for _ in range(100):
        feed = objective.collate(given, draw)
        labels, second, counts = feed.labels
        assert counts.sum() == feed.targets == (labels != IGNORED).sum()
        assert feed.segments is not None
        for i, (a, b) in enumerate(halves(feed)):
            assert a
            assert b
            assert (a + b == texts[i]) == (second[i] == 0)
            assert texts[i][: len(a)] == a
            assert any(text[-len(b) :] == b for j, text in enumerate(texts) if (j == i) == (second[i] == 0))
            assert feed.segments[i].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)  # type: ignore[union-attr]
        seen += second.tolist()
    assert np.mean(seen) == pytest.approx(0.5, abs=0.08)


def test_texts_are_cut_between_sentences() -> None:
    text = "a b c. d e. f g h i"
    tokenizer = train_tokenizer([text], "wordpiece", 15)
    objective = masked(model=replace(BOTH, vocab=tokenizer.vocab_size), tokenizer=tokenizer, next_sentence=True)
    assert objective.encode({"text": text})[0]["cuts"].tolist() == [4, 7]
    assert objective.encode({"text": "a b c d e f"})[0]["cuts"].tolist() == [3]  # one sentence: in its middle


def test_another_second_part_is_cut_to_fit() -> None:
    objective = masked(12, model=BOTH, next_sentence=True, on_long="window")
    given = samples(objective, 9, 3, 30)
    assert [len(one["ids"]) for one in given] == [9, 3, 9, 9, 9, 3]
    for seed in range(30):
        assert max(map(len, objective.collate(given, np.random.default_rng(seed)).ids)) <= 12


def test_one_text_alone_is_followed_by_itself() -> None:
    objective = masked(model=BOTH, next_sentence=True)
    for seed in range(10):
        assert objective.collate(samples(objective, 9), np.random.default_rng(seed)).labels[1].tolist() == [0]


def test_both_losses_are_those_of_transformers() -> None:
    made = case("bert", "BertForPreTraining")
    objective = masked(model=BOTH, next_sentence=True)
    feed = objective.collate(samples(objective, 12, 11, 13, 10), np.random.default_rng(1))
    assert isinstance(feed.ids, list)
    assert isinstance(feed.segments, list)
    labels, second, counts = feed.labels
    assert set(second.tolist()) == {0, 1}
    given = {
        "input_ids": small.padded(feed.ids),
        "token_type_ids": small.padded(feed.segments),
        "attention_mask": small.padded([torch.ones_like(row) for row in feed.ids]),
    }
    with torch.no_grad():
        ours, out = objective.loss(made.ours, feed), made.theirs(**given)
    words = torch.nn.functional.cross_entropy(
        out.prediction_logits.flatten(0, 1), small.grid(labels, feed.ids).flatten(), reduction="sum"
    )
    follows = torch.nn.functional.cross_entropy(out.seq_relationship_logits, second, reduction="none")
    torch.testing.assert_close(ours, words + (follows * counts).sum(), rtol=1e-5, atol=1e-5)


def test_the_masked_head_among_several_learns_alone() -> None:
    ours = case("bert", "BertForPreTraining").ours
    objective = masked(model=BOTH)
    feed = objective.collate(samples(objective, 9, 5), np.random.default_rng(0))
    only = case("bert", "tiny").ours
    assert objective.loss(ours, feed).isfinite()
    assert masked().loss(only, feed).isfinite()


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"trains a MaskedLM head, and the model has LMHead: say model.new_head"):
        masked(model=case("gpt2", "tiny").ours.spec)
    with pytest.raises(ConfigError, match=r"trains a Classify head.*Heads\(\(MaskedLM, Classify\)\)"):
        masked(next_sentence=True)
    with pytest.raises(ConfigError, match="no mask token"):
        masked(tokenizer=small.gpt())
    stack = replace(BOTH.stacks[0], embed=replace(BOTH.stacks[0].embed, segments=1))
    with pytest.raises(ConfigError, match="of segment 1, and this model knows 1"):
        masked(model=replace(BOTH, encoder=stack), next_sentence=True)
    with pytest.raises(ConfigError, match="two labels"):
        masked(model=replace(BOTH, head=spec.Heads((BERT.head, spec.Classify(("a", "b", "c"))))), next_sentence=True)
    with pytest.raises(InputError, match="cut in two"):
        masked(model=BOTH, next_sentence=True).encode({"text": "w9"})
    with pytest.raises(InputError, match="text must be a text"):
        masked().encode({"words": ["w9"]})
