"""Pairs against all others: the loss is sentence-transformers' MultipleNegativesRankingLoss."""

from typing import Any

import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.train import recipe
from qkv.train.contrast import Contrast
from tests.tasks.fakes import wordpiece
from tests.train.heads import collated, encoder, loss_of

PAIRS = [
    {"first": "Who lives in Paris?", "second": "Anna Smith lives there.", "negative": "Bob lives in New York."},
    {"first": "capital", "second": "Berlin is the capital of Germany.", "negative": "the answer"},
    {"first": "playing", "second": "played", "negative": "unbelievable"},
]


def made(model: Any, length: int | None = None, **settings: Any) -> Contrast:
    return Contrast(recipe.Contrast(kind="contrast", **settings), model.spec, model.tokenizer, length)


@pytest.mark.parametrize("how", ["mean", "cls"])
@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("scale", [20.0, 5.0])
def test_the_loss_is_that_of_sentence_transformers(how: Any, negatives: bool, scale: float) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = encoder(spec.Pool(how))
    records = [{**pair, "negative": pair["negative"] if negatives else None} for pair in PAIRS]
    names = ("first", "second", "negative") if negatives else ("first", "second")
    columns = [torch.stack(model([wordpiece().encode(pair[name]) for pair in PAIRS])) for name in names]
    want = MultipleNegativesRankingLoss(None, scale=scale).compute_loss_from_embeddings(columns, None)
    got = loss_of(made(model, scale=scale), model, *records)
    assert float(got.detach()) / 3 == pytest.approx(float(want.detach()), rel=1e-5)


def test_some_pairs_have_a_negative_and_some_none() -> None:
    """One that is there is wrong for all."""
    model = encoder(spec.Pool())
    objective = made(model)
    records: list[dict[str, Any]] = [PAIRS[0], *({**pair, "negative": None} for pair in PAIRS[1:])]
    samples = [sample for record in records for sample in objective.encode(record)]
    feed = collated(objective, samples)
    assert len(feed.ids) == 7
    assert feed.targets == 3
    assert feed.tokens == sum(map(objective.size, samples)) == sum(map(len, feed.ids))
    vectors = torch.nn.functional.normalize(torch.stack(model(feed.ids)), dim=-1)
    scores = vectors[:3] @ vectors[3:].T * 20
    want = -scores.log_softmax(-1)[range(3), range(3)].sum()
    assert float(objective.loss(model, feed).detach()) == pytest.approx(float(want.detach()), rel=1e-5)


def test_it_learns() -> None:
    model = encoder(spec.Pool())
    objective = made(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = float(loss_of(objective, model, *PAIRS).detach())
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(objective, model, *PAIRS).backward()
        optimizer.step()
    assert float(loss_of(objective, model, *PAIRS).detach()) < before / 3


def test_long_texts() -> None:
    model = encoder(spec.Pool())
    with pytest.raises(InputError, match=r"second has .* tokens; the most is 12"):
        made(model, 12).encode(PAIRS[1])
    drop, cut = made(model, 12, on_long="drop"), made(model, 12, on_long="truncate")
    assert drop.encode(PAIRS[1]) == []
    assert drop.dropped == 1
    (sample,) = cut.encode(PAIRS[1])
    assert len(sample["second"]) == 12
    with pytest.raises(ConfigError, match="'window' makes no sense here"):
        made(model, on_long="window")


def test_bad_records_and_models() -> None:
    with pytest.raises(InputError, match="second must be a text, got None"):
        made(encoder(spec.Pool())).encode({"first": "a"})
    with pytest.raises(InputError, match="negative must be a text, got 3"):
        made(encoder(spec.Pool())).encode({**PAIRS[0], "negative": 3})
    with pytest.raises(ConfigError, match="new_head = 'pool'"):
        made(encoder(spec.States()))
