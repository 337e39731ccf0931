"""`qkv embed FILE`: a vector for each line of a file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from qkv.cli import answer
from qkv.cli.console import JsonOption, ModelOption, err, note, print_json, read_file, read_stdin
from qkv.errors import InputError
from qkv.write import renamed_when_whole

if TYPE_CHECKING:
    from qkv.model import Model
    from qkv.tasks.embed import Embeddings, Progress, Vectors

EMBEDDER = "minilm"
ON_LONG = ("error", "truncate", "chunk")
POOLINGS = ("mean", "cls", "max", "last")
LINE_EVERY = 5.0  # seconds between plain lines where standard error is no terminal
_WAY_OUT = "--on-long truncate cuts off its end, --on-long chunk averages windows over all of it"


def embed(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text a line, in UTF-8; - is standard input.")],
    model: ModelOption = EMBEDDER,
    out: Annotated[
        Path | None,
        typer.Option(help="Write here: .npy, float32 [lines, dim], or .jsonl. JSONL is printed if not given."),
    ] = None,
    on_long: Annotated[
        str, typer.Option(help="What is longer than the model reads: error, truncate, or chunk (windows, averaged).")
    ] = "error",
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens a line may have; the model's own limit if not given.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Put this before every line.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Put the model's prompt of this name before every line.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help=f"Make one vector of a model's states, of length 1: {', '.join(POOLINGS)}.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="JSONL: the line itself beside its vector.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --out.")] = False,
    budget: Annotated[int | None, typer.Option(min=1, help="Tokens read at once.")] = None,
    dtype: answer.Dtype = None,
    device: answer.Device = None,
    threads: answer.Threads = None,
    json: JsonOption = False,
) -> None:
    """Turn each line of a file into a vector.

    An empty line is embedded as the empty text, so that line n is row n. Lines are read in batches of like lengths;
    what was cut or averaged is told at the end. Example: qkv embed lines.txt --out vectors.npy --dtype bfloat16
    """
    _check(out, on_long, pool, text, force, json)
    lines = _lines(file)
    loaded = _load(model, dtype, device, threads, pool)
    for said in loaded.notes if not json else ():
        note(said)
    options = {"length": length, "on_long": on_long, "prompt": prompt, "prompt_name": prompt_name}
    if budget is not None:
        options["budget"] = budget

    def run(vectors: "Vectors") -> tuple["Embeddings", float]:
        start = time.perf_counter()
        with _progress(len(lines)) as progress:
            return _embed(loaded, lines, options, vectors, progress), time.perf_counter() - start

    if out is None:
        done, seconds = _jsonl(run, loaded, lines, text, sys.stdout)
    else:
        try:
            with renamed_when_whole(out) as temporary:
                if out.suffix == ".npy":
                    done, seconds = _npy(run, loaded, lines, temporary)
                else:
                    with temporary.open("w", encoding="utf-8") as sink:
                        done, seconds = _jsonl(run, loaded, lines, text, sink)
        except OSError as error:
            raise InputError(f"{out} can't be written: {error.strerror or error}") from error
    _report(loaded, done, seconds, out, on_long, len(lines), json)


def _check(out: Path | None, on_long: str, pool: str | None, text: bool, force: bool, json: bool) -> None:
    """InputError for what can be told before a model is loaded."""
    if on_long not in ON_LONG:
        raise InputError(f"--on-long is one of {', '.join(ON_LONG)}, got {on_long!r}")
    if pool is not None and pool not in POOLINGS:
        raise InputError(f"--pool is one of {', '.join(POOLINGS)}, got {pool!r}")
    if out is None:
        if json:
            raise InputError("--json prints a report where the vectors would be printed; give them a file with --out")
        return
    if out.suffix not in (".npy", ".jsonl"):
        raise InputError(f"--out {out}: the name must end in .npy or .jsonl")
    if text and out.suffix == ".npy":
        raise InputError("--text needs JSONL: a .npy file holds numbers alone")
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out {out}: {'this is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")
    if out.exists() and not force:
        raise InputError(f"{out} is already there; --force overwrites it")


def _lines(file: str) -> list[str]:
    """A file's lines, which end at \\n (and \\r\\n) alone. InputError: none, or not UTF-8; NotFound."""
    if file == "-":
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(newline="\n")  # else a lone \r would make two rows of a line
        text = read_stdin("text")
    else:
        text = read_file(file).removesuffix("\n")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _load(ref: str, dtype: str | None, device: str | None, threads: int | None, pool: str | None) -> "Model":
    """The model. InputError: its head gives no vector a text."""
    from qkv import spec

    head = None if pool is None else spec.Pool(how=pool, normalize=True)  # type: ignore[arg-type]  # checked before
    loaded = answer.load(ref, dtype, device, threads, new_head=head)
    if not isinstance(loaded.spec.head, spec.Pool):
        own = type(loaded.spec.head).__name__
        raise InputError(
            f"{ref}: the head is {own}, which gives no vector a text; --pool mean puts a mean in its place"
        )
    return loaded


def _name(index: int) -> str:
    return f"line {index + 1:,}"


def _embed(
    model: "Model", lines: list[str], options: dict[str, Any], vectors: "Vectors", progress: "Progress"
) -> "Embeddings":
    from qkv.tasks.embed import TooLong
    from qkv.tasks.embed import embed as run

    try:
        return run(model, model.tokenizer, lines, model.sentence, out=vectors, name=_name, progress=progress, **options)
    except TooLong as error:
        raise InputError(f"{error.what}; {_WAY_OUT}") from error


Run = Callable[["Vectors"], tuple["Embeddings", float]]


def _npy(run: Run, model: "Model", lines: list[str], path: Path) -> tuple["Embeddings", float]:
    """Straight into the file, however large."""
    import numpy as np

    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(lines), model.spec.dim))
    done = run(vectors)
    vectors.flush()
    return done


def _jsonl(run: Run, model: "Model", lines: list[str], text: bool, sink: TextIO) -> tuple["Embeddings", float]:
    """Through a temporary file, since vectors come in the order of lengths."""
    import json
    import tempfile

    import numpy as np

    with tempfile.TemporaryFile() as scratch:
        vectors = np.memmap(scratch, np.float32, "w+", shape=(len(lines), model.spec.dim))
        done = run(vectors)
        for line, vector in zip(lines, vectors, strict=True):
            said = f'"text": {json.dumps(line)}, ' if text else ""
            sink.write(f'{{{said}"embedding": [{", ".join(map(str, vector))}]}}\n')  # the shortest digits of a float32
    return done


def _report(
    model: "Model", done: "Embeddings", seconds: float, out: Path | None, on_long: str, lines: int, json: bool
) -> None:
    if json:
        about = {
            "model": model.source.origin if model.source else None,
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        size = {"lines": lines, "dim": model.spec.dim, "tokens": done.tokens, "seconds": seconds}
        long = [
            {"line": t.index + 1, "tokens": t.tokens, "dropped": t.dropped, "windows": t.windows} for t in done.long
        ]
        rates = {"tokens_per_second": done.tokens / seconds, "lines_per_second": lines / seconds}
        limits = {"limit": done.limit, "on_long": on_long, "long": long}
        print_json({**about, "out": str(out), **size, **rates, **limits, "notes": list(model.notes)})
        return
    if told := done.note(_name):
        note(told)
    written = f"{out} · " if out else ""
    note(
        f"{written}{lines:,} lines of {model.spec.dim} · {done.tokens:,} tokens · {_rates(lines, done.tokens, seconds)}"
    )


def _rates(lines: int, tokens: int, seconds: float) -> str:
    return f"{lines / seconds:,.1f} lines/s · {tokens / seconds:,.0f} tokens/s"


@contextmanager
def _progress(lines: int) -> "Iterator[Progress]":
    """A bar on a terminal, a plain line every five seconds elsewhere, on standard error."""
    start = told = time.perf_counter()
    if not sys.stderr.isatty():

        def say(texts: int, tokens: int, total: int) -> None:
            nonlocal told
            now = time.perf_counter()
            if now - told >= LINE_EVERY:
                told = now
                note(f"{texts:,} of {lines:,} lines ({tokens / total:.0%}) · {_rates(texts, tokens, now - start)}")

        yield say
        return
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[rates]}"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=err(), transient=True) as bar:
        task = bar.add_task(f"embedding {lines:,} lines", total=None, rates="")

        def draw(texts: int, tokens: int, total: int) -> None:
            rates = _rates(texts, tokens, time.perf_counter() - start)
            bar.update(task, completed=tokens, total=total, rates=rates)

        yield draw
