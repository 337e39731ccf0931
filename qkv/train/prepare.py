"""From a recipe to what the loop needs: tokenizer, labels, model, objective, samples on disk, an evaluator."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qkv import spec
from qkv.errors import ConfigError
from qkv.model import Model
from qkv.paths import cache_root
from qkv.tasks.windows import limit
from qkv.train import classify, parallel, records, shards, tagging
from qkv.train.begin import begin
from qkv.train.evaluate import Evaluator
from qkv.train.fingerprint import Fingerprint, described, digest, fingerprint
from qkv.train.objective import OBJECTIVES, Objective
from qkv.train.objectives import make
from qkv.train.recipe import ClassifyTexts, Data, Files, Recipe, TagWords
from qkv.train.shards import Shards
from qkv.train.vocabulary import TOKENIZER, texts_of, tokenizer_of, train_once


@dataclass(frozen=True)
class Prepared:
    """`evaluator`: of the validation records, if there are some; `test`: of the test records. `print`: the fingerprint
    of the training samples. `notes`: what a person should know of the data."""

    model: Model
    objective: Objective
    samples: Shards
    evaluator: Evaluator | None
    test: Evaluator | None
    print: Fingerprint
    notes: tuple[str, ...]


def prepare(recipe: Recipe, out: Path, world: parallel.World) -> Prepared:
    """Everything but the weights of a checkpoint. What takes writing (a tokenizer, samples) is done by rank 0 first.

    Raises what is wrong with recipe, data or model: ConfigError, InputError, NotFound, CorruptFile, WeightError."""
    root, kind = Path(recipe.data.root), OBJECTIVES[type(recipe.objective)]
    bad = records.Bad(recipe.data.skip_bad, *(() if world.first else (lambda _: None,)))

    def part(which: records.Part, heard: records.Bad) -> Iterator[records.Placed]:
        return records.part(recipe.data, which, root, kind.fields, heard, kind.optional)

    def training() -> Iterator[Mapping[str, Any]]:  # looked at before they are encoded, when bad ones are reported
        return (placed.record for placed in part("train", records.unheard()))

    def train() -> None:
        train_once(recipe, out, texts_of(recipe, part("train", bad), bad))

    parallel.together(world, lambda: train() if world.first else None)
    tokenizer = tokenizer_of(recipe, out / TOKENIZER)
    torch.manual_seed(recipe.seed)  # fresh weights
    model = begin(recipe.model, tokenizer, labels_of(recipe, training()), problem_of(recipe))
    assert model.tokenizer is not None
    packed = recipe.batch.packing != "none"
    objective = make(recipe.objective, model.spec, model.tokenizer, recipe.batch.length, packed=packed)
    extra = {
        "labels": getattr(model.spec.head, "labels", None),
        "context": limit(model.spec).size,
        "segments": bool(model.spec.stacks[0].embed.segments),
        "packed": packed,
    }
    read = described(model.tokenizer)
    made = fingerprint(recipe.data, "train", root, read, recipe.objective, recipe.batch.length, extra)
    place = digest({**made, "root": str(root)})  # samples know the names of their files, which say where these are
    folder = cache_root() / "samples" / place[:32]

    def counts() -> dict[str, int]:
        return {"cut": objective.cut, "dropped": objective.dropped}

    def build() -> None:
        shards.build(part("train", bad), objective.encode, folder, made, size=objective.size, bad=bad, counts=counts)

    parallel.together(world, lambda: build() if world.first else None)
    samples = shards.open_shards(folder)
    samples.report(bad)  # for the other ranks, so that all count the same

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
        test() if has_part(recipe, "test") else None,
        made,
        (*_notes(samples), *_shared(recipe.data, root)),
    )


def has_part(recipe: Recipe, which: records.Part) -> bool:
    """Whether a recipe's data have such a part."""
    held = recipe.data.hold_out
    files = {"train": recipe.data.train, "valid": recipe.data.valid, "test": recipe.data.test}[which]
    return files != () or (held is not None and which != "train" and getattr(held, which) > 0)


def labels_of(recipe: Recipe, found: Iterable[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """What a new head chooses from; None: it doesn't."""
    said = recipe.objective
    if isinstance(said, ClassifyTexts):
        return classify.labels_of(found, said)
    return tagging.labels_of(found, said) if isinstance(said, TagWords) else None


def problem_of(recipe: Recipe) -> spec.Problem | None:
    """What a new classifier is for; None: the objective is another."""
    return recipe.objective.problem if isinstance(recipe.objective, ClassifyTexts) else None


def _shared(data: Data, root: Path) -> Iterator[str]:
    """What is learned from and measured on: files that two parts of the data name."""
    parts: tuple[records.Part, ...] = ("train", "valid", "test")
    train, *others = (_files(getattr(data, which), data, root) for which in parts)
    for which, own in zip(parts[1:], others, strict=True):
        for name in (own[file] for file in own if file in train):
            yield f"data.{which} names {name}, which data.train names too: what is measured there was learned"


def _files(files: Files, data: Data, root: Path) -> dict[tuple[str, str], str]:
    """Names by the file itself, and its members."""
    found = records.sources(files, data, root)
    return {(one.name if one.file is None else str(one.file.resolve()), one.member): _name(one) for one in found}


def _name(source: records.Source) -> str:
    if source.file is None:
        return source.name
    return f"{source.file}!{source.member}" if source.member else str(source.file)


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
        for name in ("every", "best", "metrics"):
            if getattr(recipe.eval, name) is not None:
                raise ConfigError(f"eval.{name} needs validation records: say data.valid or data.hold_out.valid")
