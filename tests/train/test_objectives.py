"""Every objective of a recipe is there, and made for its model."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from qkv.errors import ConfigError
from qkv.inputs.text import Tokenizer
from qkv.nn.head import IGNORED
from qkv.train import recipe
from qkv.train.causal import Causal
from qkv.train.loader import Loader
from qkv.train.objective import OBJECTIVES
from qkv.train.objectives import make
from qkv.train.order import Order
from qkv.train.records import Bad, Placed
from qkv.train.shards import build
from qkv.train.translate import Translate
from tests.families.reference import case
from tests.train import small

KINDS = get_args(get_args(recipe.AnyObjective)[0])


def said(**settings: Any) -> Any:
    return TypeAdapter(recipe.AnyObjective).validate_python(settings)


@pytest.mark.parametrize("settings", KINDS)
def test_each_kind_has_a_class(settings: type[recipe.Objective]) -> None:
    made = OBJECTIVES[settings]
    assert made.__doc__ or made.__mro__[1].__doc__
    assert made.fields


def test_the_one_that_a_recipe_says() -> None:
    made = make(said(kind="causal", smoothing=0.1), case("gpt2", "tiny").ours.spec, small.gpt(), 12)
    assert isinstance(made, Causal)
    assert (made.length, made.packed, made.settings.smoothing) == (12, False, 0.1)
    assert isinstance(make(said(kind="seq2seq"), case("t5", "tiny").ours.spec, small.t5(), None), Translate)


FED = [
    ("causal", "gpt2", "tiny", small.gpt(), {}),
    ("prefix", "t5", "tiny", small.t5(), {}),
    ("spans", "t5", "tiny", small.t5(), {}),
    ("denoise", "bart", "tiny", small.bart(), {"rotate": 0.5}),
    ("seq2seq", "t5", "tiny", small.t5(), {}),
    ("masked", "bert", "BertForPreTraining", small.bert(), {"next_sentence": True}),
]


@pytest.mark.parametrize(("kind", "name", "variant", "tokenizer", "settings"), FED, ids=[one[0] for one in FED])
def test_feeds_are_the_same_from_another_process(
    kind: str, name: str, variant: str, tokenizer: Tokenizer, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = case(name, variant).ours
    objective = make(said(kind=kind, **settings), model.spec, tokenizer, None)
    texts = small.texts(*range(3, 15))
    records = [Placed({"text": text, "source": text, "target": text}, f"x:{i}") for i, text in enumerate(texts)]
    shards = build(records, objective.encode, tmp_path / "s", {}, size=objective.size, bad=Bad())
    order = Order(shards.sizes, recipe.BatchOf(sequences=4), 0)
    here, there = (list(Loader(shards, order, objective, 0, workers=n).once()) for n in (0, 1))
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert (a.targets, a.tokens, a.samples) == (b.targets, b.tokens, b.samples)
        for mine, theirs in ((a.ids, b.ids), (a.target or [], b.target or [])):
            assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.equal(objective.loss(model, a), objective.loss(model, b))


@pytest.mark.parametrize("packing", ["blocks", "documents"])
def test_packed_texts_lose_no_token(packing: Any, tmp_path: Path) -> None:
    model = case("gpt2", "tiny").ours
    objective = make(said(kind="causal"), model.spec, small.gpt(), 8, packed=True)
    records = [Placed({"text": text}, f"x:{i}") for i, text in enumerate(small.texts(3, 30, 1, 12))]
    shards = build(records, objective.encode, tmp_path / "s", {}, size=objective.size, bad=Bad())
    order = Order(shards.sizes, recipe.BatchOf(sequences=2, length=8, packing=packing), 0, shuffle=False)
    feeds = list(Loader(shards, order, objective, 0).once())
    stream = [id for one in shards for id in one["ids"].tolist()]
    predicted = [id for feed in feeds for id in feed.labels.tolist() if id != IGNORED]
    assert len(stream) == 50
    assert len(predicted) == sum(feed.targets for feed in feeds)
    starts = set(np.cumsum([0, *shards.sizes[:-1]]).tolist()) if packing == "documents" else {0}
    assert predicted == [id for i, id in enumerate(stream) if i not in starts]
    assert max(len(row) for feed in feeds for row in feed.ids) == 8
    assert all(objective.loss(model, feed).isfinite() for feed in feeds)


def test_packing() -> None:
    model = case("gpt2", "tiny").ours.spec
    assert make(said(kind="causal"), model, small.gpt(), 12, packed=True).packed
    with pytest.raises(ConfigError, match=r"'prefix' can't be packed.*batch.packing"):
        make(said(kind="prefix"), model, small.gpt(), 12, packed=True)
