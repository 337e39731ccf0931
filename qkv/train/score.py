"""How a model scores on a file, by what its head is for; and a run on the records that its recipe kept aside."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.model import Model
from qkv.nn.packed import Packed
from qkv.train import recipe
from qkv.train.evaluate import BUDGET, Evaluation, Evaluator
from qkv.train.framed import text_of
from qkv.train.likelihood import likelihood
from qkv.train.objective import OBJECTIVES, Objective
from qkv.train.objectives import make
from qkv.train.records import ALL, Bad, Placed, part, read

_KINDS: dict[type[spec.Head], str] = {
    spec.Classify: "classify",
    spec.Tag: "tag",
    spec.Span: "span",
    spec.Pool: "contrast",
    spec.MaskedLM: "masked",
}


@dataclass(frozen=True)
class Score:
    """objective: the kind of it. said: how metrics were counted, and what became of texts that are too long."""

    objective: str
    evaluation: Evaluation
    said: dict[str, str]


def score_run(
    model: Model,
    run: recipe.Recipe,
    split: Literal["train", "valid", "test"] = "valid",
    *,
    metrics: tuple[str, ...] | None = None,
    limit: int | None = None,
    samples: int = 0,
    budget: int = BUDGET,
) -> Score:
    """A run's model on records of its recipe, with its lengths and packing. `metrics` None: the recipe's; `limit`
    None: all records, whatever its eval.limit. Errors as `Evaluator` and `qkv.train.records.part`."""
    objective = make(run.objective, model.spec, _tokenizer(model), run.batch.length, packed=run.batch.packing != "none")
    bad = Bad(run.data.skip_bad)
    records = part(run.data, split, Path(run.data.root), objective.fields, bad, objective.optional)
    changes = {"limit": limit, "samples": samples, "best": None, "metrics": metrics or run.eval.metrics}
    wanted = run.eval.model_copy(update=changes)
    evaluator = Evaluator(wanted, objective, records, bad, batch=run.batch, seed=run.seed, budget=budget)
    return _scored(run.objective.kind, evaluator.run(model), evaluator.objective)


def score_file(
    model: Model,
    path: str | Path,
    kind: str | None = None,
    *,
    fields: Mapping[str, str | int] | None = None,
    format: str = "auto",
    metrics: tuple[str, ...] | None = None,
    length: int | None = None,
    limit: int | None = None,
    samples: int = 0,
    budget: int = BUDGET,
    **options: Any,
) -> Score:
    """A model on the records of a file. `kind`: of the objective (None: what the head is for); `options` are keys of
    its table in a recipe. `fields`: the objective's names → the file's.

    A decoder without `kind` is measured by perplexity and bits per byte (`qkv.train.likelihood`; a text file is one
    text), where the file has no answers; its one option is `stride`. InputError: an option that the objective hasn't, a
    head that says nothing; and as `Evaluator`."""
    data = _data(str(path), fields or {}, format)
    most = ALL if limit is None else limit
    table = _table(model, kind)
    if kind is None and table["kind"] == "causal" and "answer" not in data.fields:
        records = read(data.train, data, Path(), ("text",), Bad(), limit=most)
        return _of_texts(model, records, metrics, length, budget, samples, **options)
    settings = _settings({**table, **options})
    if isinstance(model.spec.head, spec.LMHead | spec.MaskedLM) and any(isinstance(p, Packed) for p in model.modules()):
        raise InputError("the loss over a packed vocabulary isn't done here: load the model with a dtype (float32)")
    objective = make(settings, model.spec, _tokenizer(model), length)
    cls = OBJECTIVES[type(settings)]
    records = read(data.train, data, Path(), cls.fields, Bad(), cls.optional, limit=most)
    evaluator = Evaluator(recipe.Evaluate(metrics=metrics, samples=samples), objective, records, budget=budget)
    return _scored(table["kind"], evaluator.run(model), evaluator.objective)


def _of_texts(
    model: Model,
    records: Iterator[Placed],
    metrics: tuple[str, ...] | None,
    length: int | None,
    budget: int,
    samples: int,
    *,
    stride: int | None = None,
    **options: Any,
) -> Score:
    if options or samples:
        name = next(iter(options), "samples")
        raise InputError(f"{name} is not for perplexity, which reads texts in windows; the objective 'causal' has it")
    began = time.perf_counter()
    texts = (text_of(placed.record, "text") for placed in records)
    found = likelihood(model, _tokenizer(model), texts, length=length, stride=stride, budget=budget)
    if unknown := set(metrics or ()) - set(found.values):
        raise ConfigError(f"texts have no metric {min(unknown)!r}: there are {', '.join(found.values)}")
    values = {name: found.values[name] for name in metrics or found.values}
    said = {"counted": found.describe()}
    return Score("causal", Evaluation(values, [], time.perf_counter() - began, said), said)


def _scored(kind: str, evaluation: Evaluation, objective: Objective) -> Score:
    counts = {"cut, or read in windows": objective.cut, "left out": objective.dropped}
    long = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return Score(kind, evaluation, {**evaluation.said, **({"long texts": long} if long else {})})


def _tokenizer(model: Model) -> Any:
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, so it can't read texts")
    return model.tokenizer


def _data(path: str, fields: Mapping[str, str | int], format: str) -> recipe.Data:
    try:
        return recipe.Data(train=path, fields=dict(fields), format=format, document="file")  # type: ignore[arg-type]
    except ValidationError as error:
        raise InputError(f"format {format!r}: {error.errors()[0]['msg']}") from error


def _table(model: Model, kind: str | None) -> dict[str, Any]:
    """The objective that is asked for, or that the head is for."""
    head = model.spec.head
    kinds = {**_KINDS, spec.LMHead: "causal" if model.encoder is None else "seq2seq"}
    found = kind or kinds.get(type(head))
    if found is None:
        raise InputError(f"a {type(head).__name__} head doesn't tell what it is to be measured by: say which objective")
    return {"kind": found, **({"problem": head.problem} if isinstance(head, spec.Classify) else {})}


def _settings(table: dict[str, Any]) -> Any:
    """The objective's table of a recipe. InputError: there is no such objective, or it has no such key."""
    try:
        return TypeAdapter(recipe.AnyObjective).validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "union_tag_invalid":
            raise InputError(
                f"no objective is called {table['kind']!r}; there are {first['ctx']['expected_tags']}"
            ) from error
        why = "has no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise InputError(f"{first['loc'][-1]}: the objective {table['kind']!r} {why}") from error
