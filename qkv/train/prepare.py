"""From a recipe to what the loop needs: tokenizer, labels, model, objective, samples on disk, an evaluator."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.load.describe import describe
from qkv.model import Model
from qkv.paths import cache_root
from qkv.train import classify, parallel, records, shards, tagging
from qkv.train.begin import begin
from qkv.train.evaluate import Evaluator
from qkv.train.fingerprint import Fingerprint, digest, fingerprint
from qkv.train.objective import OBJECTIVES, Objective
from qkv.train.objectives import make
from qkv.train.recipe import ClassifyTexts, Recipe, TagWords
from qkv.train.shards import Shards

TOKENIZER = "tokenizer"  # the folder of a tokenizer that a run has trained, in the run's own
_ENDS = {"eos": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}  # of the kinds that have no usual ones


@dataclass(frozen=True)
class Prepared:
    """`evaluator`: of the validation records, if there are some; `test` makes that of the test records. `print`: the
    fingerprint of the training samples. `notes`: what a person should know of the data."""

    model: Model
    objective: Objective
    samples: Shards
    evaluator: Evaluator | None
    test: Callable[[], Evaluator] | None
    print: Fingerprint
    notes: tuple[str, ...]


def prepare(recipe: Recipe, out: Path, world: parallel.World) -> Prepared:
    """Everything but the weights of a checkpoint. What takes writing (a tokenizer, samples) is done by rank 0 first.

    Raises what is wrong with recipe, data or model: ConfigError, InputError, NotFound, CorruptFile, WeightError."""
    root, kind = Path(recipe.data.root), OBJECTIVES[type(recipe.objective)]
    bad = records.Bad(recipe.data.skip_bad)

    def part(which: records.Part, heard: records.Bad) -> Iterator[records.Placed]:
        return records.part(recipe.data, which, root, kind.fields, heard, kind.optional)

    def training() -> Iterator[Mapping[str, Any]]:  # looked at before they are encoded, when bad ones are reported
        return (placed.record for placed in part("train", records.Bad(records.ALL, say=lambda _: None)))

    parallel.together(world, lambda: _train_tokenizer(recipe, out, training()) if world.first else None)
    tokenizer = tokenizer_of(recipe, out / TOKENIZER)
    torch.manual_seed(recipe.seed)  # fresh weights
    model = begin(recipe.model, tokenizer, labels_of(recipe, training()), problem_of(recipe))
    assert model.tokenizer is not None
    packed = recipe.batch.packing != "none"
    objective = make(recipe.objective, model.spec, model.tokenizer, recipe.batch.length, packed=packed)
    extra = {"labels": getattr(model.spec.head, "labels", None), "context": model.spec.context}
    made = fingerprint(
        recipe.data, "train", root, model.tokenizer.to_json(), recipe.objective, recipe.batch.length, extra
    )
    folder = cache_root() / "samples" / digest(made)[:32]

    def counts() -> dict[str, int]:
        return {"cut": objective.cut, "dropped": objective.dropped}

    def build() -> None:
        shards.build(part("train", bad), objective.encode, folder, made, size=objective.size, bad=bad, counts=counts)

    parallel.together(world, lambda: build() if world.first else None)
    samples = shards.open_shards(folder)

    def valid() -> Evaluator:
        found: Iterable[records.Placed] = part("valid", bad)
        if recipe.eval.limit is not None:
            found = islice(found, recipe.eval.limit)
        return Evaluator(recipe.eval, objective, found, bad, batch=recipe.batch, seed=recipe.seed)

    def test() -> Evaluator:
        whole = recipe.eval.model_copy(update={"limit": None})  # which is of the validation records
        return Evaluator(whole, objective, part("test", bad), bad, batch=recipe.batch, seed=recipe.seed)

    return Prepared(
        model,
        objective,
        samples,
        valid() if has_part(recipe, "valid") else None,
        test if has_part(recipe, "test") else None,
        made,
        _notes(samples),
    )


def has_part(recipe: Recipe, which: records.Part) -> bool:
    """Whether a recipe's data have such a part."""
    held = recipe.data.hold_out
    files = {"train": recipe.data.train, "valid": recipe.data.valid, "test": recipe.data.test}[which]
    return files != () or (held is not None and which != "train" and getattr(held, which) > 0)


def tokenizer_of(recipe: Recipe, trained: Path) -> Tokenizer | None:
    """The recipe's tokenizer; None: the model's own. `trained`: where one that the run trains is. InputError: the model
    that it names has none."""
    said = recipe.tokenizer
    if said.train is not None:
        return Tokenizer.from_folder(trained)
    origin = said.origin if said.origin is not None else recipe.model.origin
    if origin is None:
        raise InputError("the recipe names no tokenizer: say tokenizer.from (a model's) or tokenizer.train (a kind)")
    if (Path(origin) / "tokenizer.json").is_file():
        return Tokenizer.from_folder(origin)
    described = describe(origin, config_only=False)
    if described.gguf is not None:
        return Tokenizer.from_gguf(described.gguf.metadata)
    if described.folder is None or "tokenizer.json" not in described.folder.tokenizer:
        raise InputError(f"{origin} has no tokenizer.json: say tokenizer.from, a model that has one")
    return Tokenizer.from_folder(described.folder.root)


def _train_tokenizer(recipe: Recipe, out: Path, found: Iterable[Mapping[str, Any]]) -> None:
    """Train one, once a run: some kinds' training is not the same twice."""
    if recipe.tokenizer.train is None or (out / TOKENIZER / "tokenizer.json").exists():
        return
    aside = out / f".{TOKENIZER}"  # it has several files, and a run that is killed between two begins anew
    shutil.rmtree(aside, ignore_errors=True)
    trained_tokenizer(recipe, found).save(aside)
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    aside.rename(out / TOKENIZER)


def trained_tokenizer(recipe: Recipe, found: Iterable[Mapping[str, Any]]) -> Tokenizer:
    """A new one of the recipe's kind, for the texts of these records. Raises as `train_tokenizer`."""
    said = recipe.tokenizer
    assert said.train is not None
    ends = None if said.train in ("wordpiece", "char", "word") else _ENDS
    return train_tokenizer(_texts_of(found), said.train, said.vocab, special_tokens=ends, lowercase=said.lowercase)


def _texts_of(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """All texts of records, lists' too."""
    for record in found:
        for value in record.values():
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def labels_of(recipe: Recipe, found: Iterable[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """What a new head chooses from; None: it doesn't."""
    said = recipe.objective
    if isinstance(said, ClassifyTexts):
        return classify.labels_of(found, said)
    return tagging.labels_of(found, said) if isinstance(said, TagWords) else None


def problem_of(recipe: Recipe) -> spec.Problem | None:
    """What a new classifier is for; None: the objective is another."""
    return recipe.objective.problem if isinstance(recipe.objective, ClassifyTexts) else None


def _notes(samples: Shards) -> tuple[str, ...]:
    counts = samples.counts
    told = [
        f"{counts['records']:,} training records are {len(samples):,} samples of {int(samples.sizes.sum()):,} tokens"
    ]
    told += [f"{counts[name]:,} {what}" for name, what in _COUNTED.items() if counts.get(name)]
    return tuple(told)


_COUNTED = {
    "bad": "records were bad and are left out",
    "cut": "texts were cut, or read in windows, as objective.on_long says",
    "dropped": "texts were too long and are left out, as objective.on_long says",
}


def check_metrics(recipe: Recipe, evaluator: Evaluator | None) -> None:
    """ConfigError: something of `eval` asks for validation records, and there are none."""
    if evaluator is None:
        for name in ("every", "best", "patience", "metrics"):
            if getattr(recipe.eval, name) is not None:
                raise ConfigError(f"eval.{name} needs validation records: say data.valid or data.hold_out.valid")
