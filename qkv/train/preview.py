"""A recipe's model and data as a run would find them, without training: what an estimate needs."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

from qkv import spec
from qkv.inputs.text import Tokenizer
from qkv.load.describe import describe
from qkv.load.head import with_new_head
from qkv.train import records
from qkv.train.begin import changed, shape
from qkv.train.objective import OBJECTIVES, Objective
from qkv.train.objectives import make
from qkv.train.prepare import labels_of, problem_of
from qkv.train.recipe import Recipe
from qkv.train.schedule import check
from qkv.train.survey import Drawn, Survey, draw, survey
from qkv.train.vocabulary import texts_of, tokenizer_of, trained_tokenizer

_DRAWN = 2000  # records that are looked at


@dataclasses.dataclass(frozen=True)
class Preview:
    """`notes`: where the run will differ, since not all data were looked at."""

    model: spec.Model
    read: Survey
    notes: tuple[str, ...]


def preview(recipe: Recipe) -> Preview:
    """Some of the data, and the model's spec. Raises as reading records, loading a model's description and making an
    objective do: what is wrong with a recipe is found here, before any training."""
    check(recipe.train, recipe.train.steps)
    kind = OBJECTIVES[type(recipe.objective)]
    drawn = _records(recipe, kind)
    tokenizer, notes = _tokenizer(recipe, drawn)
    labels = labels_of(recipe, drawn.records)
    model = _fresh(recipe, tokenizer, labels) if recipe.model.origin is None else _described(recipe, labels)
    packed = recipe.batch.packing != "none"
    learns = make(recipe.objective, model, tokenizer, recipe.batch.length, packed=packed)
    return Preview(model, survey(drawn, learns.encode, learns.size), tuple(notes))


def _records(recipe: Recipe, kind: type[Objective]) -> Drawn:
    """Records of the training part; bad ones are passed over here and counted in the run."""
    skip = records.Bad(records.ALL)
    found = records.part(recipe.data, "train", Path(recipe.data.root), kind.fields, skip, kind.optional)
    return draw((placed.record for placed in found), most=_DRAWN)


def _tokenizer(recipe: Recipe, drawn: Drawn) -> tuple[Tokenizer, list[str]]:
    """The run's, or one trained on what was drawn."""
    if recipe.tokenizer.train is None:
        own = tokenizer_of(recipe, Path())
        assert own is not None
        return own, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so few texts give fewer tokens than asked for
        placed = (records.Placed(record, str(number)) for number, record in enumerate(drawn.records))
        made = trained_tokenizer(recipe, texts_of(recipe, placed, records.unheard()))  # the survey tells of bad ones
    return made, [f"tokenizer: one trained on {len(drawn.records):,} records, whose tokens are shorter"]


def _fresh(recipe: Recipe, tokenizer: Tokenizer, labels: Sequence[str] | None) -> spec.Model:
    """The spec of new weights, with the vocabulary that the recipe asks for."""
    model = shape(recipe.model, tokenizer, labels, problem_of(recipe))
    said = {**(recipe.model.config or {}), **(recipe.model.spec or {})}
    if recipe.tokenizer.vocab is None or "vocab" in said or "vocab_size" in said:
        return model
    return dataclasses.replace(model, vocab=max(model.vocab, recipe.tokenizer.vocab))


def _described(recipe: Recipe, labels: Sequence[str] | None) -> spec.Model:
    """The spec of weights that exist, with the head that the recipe asks for."""
    said = recipe.model
    assert said.origin is not None
    own = describe(said.origin, config_only=False)
    model, _ = with_new_head(own, said.new_head, labels if said.new_head in ("classify", "tag") else None)
    return changed(model, said, problem_of(recipe))
