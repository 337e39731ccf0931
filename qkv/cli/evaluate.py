"""`qkv eval MODEL --data FILE`: how good a model is on records that it didn't learn from."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli import answer
from qkv.cli.console import JsonOption, note, print_json
from qkv.errors import InputError

if TYPE_CHECKING:
    from qkv.model import Model
    from qkv.train.recipe import Recipe
    from qkv.train.score import Score

RECIPE = "recipe.toml"  # what a run's folder says of itself


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model: an alias, a folder, a file, or a run.")],
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Text, JSONL, CSV, TSV, Parquet, CoNLL or SQuAD; also packed.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="KIND", help="classify, tag, span, seq2seq, … if the head doesn't tell it.")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Those to count, with commas; if not given, what fits.")] = None,
    fields: Annotated[
        str | None, typer.Option(help="Which of the file's fields are the objective's: text=sentence,label=y")
    ] = None,
    format: Annotated[str | None, typer.Option(help="The file's format, if its name doesn't tell it.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a run without --data: its valid or test records; valid if not given.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Records to read at most.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens to read at a time; what the model can if not given.")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=0, help="Tokens that two windows of a long text share.")] = None,
    on_long: Annotated[
        str | None, typer.Option(help="A text beyond the limit: error, truncate, drop or window.")
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Before each source, as T5 has it.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="Predictions to show.")] = 0,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a batch.")] = 4096,
    dtype: answer.Dtype = None,
    device: answer.Device = None,
    threads: answer.Threads = None,
    json: JsonOption = False,
) -> None:
    """Metrics of a model on a file: what its head is for decides which.

    A decoder: perplexity and bits per byte, over windows that share half their tokens (a text file is one text). A
    classifier: accuracy, F1, Matthews; a tagger: F1 of spans; a span head: exact match and F1 as SQuAD has them; an
    encoder–decoder: BLEU and chrF; an embedding model: Spearman of first, second and score. A run's folder without
    --data: the records that its recipe kept aside.

    Example: qkv eval runs/sentiment --data test.csv --fields text=sentence,label=y
    """
    said: dict[str, Any] = {
        "fields": _pairs(fields),
        "format": format,
        "kind": objective,
        "length": length,
        "stride": stride,
        "on_long": on_long,
        "prefix": prefix,
    }
    said = {name: value for name, value in said.items() if value is not None}
    wanted = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    run = _run(model, split, said) if data is None else None
    if data is not None and split is not None:
        raise InputError("--split is one of a run's own records; --data is all there is")
    loaded = _load(model, objective, dtype, device, threads)
    from qkv.train import score

    shared: dict[str, Any] = {"metrics": wanted, "limit": limit, "samples": samples, "budget": batch_tokens}
    if run is not None:
        found = score.score_run(loaded, run, split or "valid", **shared)  # type: ignore[arg-type]
    else:
        found = score.score_file(loaded, data or "", **said, **shared)
    _print(loaded, found, json)


def _run(model: str, split: str | None, said: dict[str, Any]) -> "Recipe":
    """The recipe of a run that is to be asked about its own records. InputError: it is none."""
    path = Path(model) / RECIPE
    if not path.is_file():
        raise InputError(f"{model} is no run (it has no {RECIPE}), so it needs --data FILE")
    if said:
        name = {"kind": "objective"}.get(first := next(iter(said)), first).replace("_", "-")
        raise InputError(f"the run's recipe says all of it: --{name} is for --data")
    if split not in (None, "train", "valid", "test"):
        raise InputError(f"--split {split} is none of train, valid, test")
    from qkv.train.recipe_file import load

    return load(path)


def _load(ref: str, objective: str | None, dtype: str | None, device: str | None, threads: int | None) -> "Model":
    """The model; one that has only states with their mean, as `qkv embed` takes it."""
    from qkv import spec

    loaded = answer.load(ref, dtype, device, threads)
    if isinstance(loaded.spec.head, spec.States) and objective in (None, "contrast"):
        return answer.load(ref, dtype, device, threads, new_head="pool")
    return loaded


def _pairs(fields: str | None) -> dict[str, str | int] | None:
    """As a mapping: "text=sentence,label=3". InputError: something else."""
    if fields is None:
        return None
    found: dict[str, str | int] = {}
    for pair in fields.split(","):
        name, _, value = (one.strip() for one in pair.partition("="))
        if not name or not value:
            raise InputError(f"--fields is NAME=COLUMN,… as in text=sentence,label=3; got {pair!r}")
        found[name] = int(value) if value.isdecimal() else value
    return found


def _print(model: "Model", found: "Score", json: bool) -> None:
    values = found.evaluation.values
    if json:
        print_json(
            {
                "model": model.source.origin if model.source else None,
                "objective": found.objective,
                "metrics": {name: value if math.isfinite(value) else None for name, value in values.items()},
                "said": found.said,
                "samples": [vars(one) for one in found.evaluation.samples],
                "seconds": found.evaluation.seconds,
                "notes": list(model.notes),
            }
        )
        return
    for text in model.notes:
        note(text)
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value:.4f}")
    for name, text in found.said.items():
        note(f"{name}: {text}")
    for one in found.evaluation.samples:
        print(f"\n{one.input}\n  expected   {one.expected}\n  predicted  {one.predicted}".translate(answer.CONTROLS))
