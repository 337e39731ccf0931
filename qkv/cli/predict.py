"""`qkv predict TEXT`: labels, spans, an answer or words for a mask, whichever the model's head is for."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli import answer
from qkv.cli.console import JsonOption, ModelOption, note, print_json, read_file, read_stdin
from qkv.errors import InputError

if TYPE_CHECKING:
    from qkv.model import Model


def predict(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; standard input if not given.")] = None,
    model: ModelOption = "",
    pair: Annotated[str | None, typer.Option(help="A second text, to be read with the first.")] = None,
    question: Annotated[str | None, typer.Option(help="A question about the context.")] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Where the answer stands, or @FILE; standard input if not given with --question."),
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="A text (or question) a line of this file; - is standard input.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Answers, words a mask, or rows of labels to show.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="A word's label: its first token's (first), max, mean; none: each token's own.")
    ] = None,
    max_answer: Annotated[int | None, typer.Option(min=1, help="Tokens an answer may have; 15 if not given.")] = None,
    no_answer: Annotated[bool, typer.Option("--no-answer", help="The context may have no answer.")] = False,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens to read at a time; what the model can if not given.")
    ] = None,
    stride: Annotated[int | None, typer.Option(min=0, help="Tokens that two windows of a long text share.")] = None,
    on_long: Annotated[
        str | None, typer.Option(help="Labels for a text beyond the limit: error, truncate, window (mean of all).")
    ] = None,
    dtype: answer.Dtype = None,
    device: answer.Device = None,
    threads: answer.Threads = None,
    json: JsonOption = False,
) -> None:
    """Labels, spans, answers or missing words, as the model's head is for.

    With --file, one result a line (with --json: JSON Lines). Example:
    qkv predict "Paris is the [MASK] of France" -m google-bert/bert-base-uncased
    """
    if not model:
        raise InputError("predict needs a model with a head for it: -m org/name, or a folder")
    texts, second = _inputs(text, pair, question, context, file)
    options: dict[str, Any] = {
        "top": top,
        "strategy": strategy,
        "max_answer": max_answer,
        "no_answer": no_answer or None,
        "window": window,
        "stride": stride,
        "on_long": on_long,
    }
    loaded = answer.load(model, dtype, device, threads)
    found = _predict(loaded, texts, second, {name: value for name, value in options.items() if value is not None})
    if json:
        _print_json(loaded, texts, found, file is not None)
        return
    for said in loaded.notes:
        note(said)
    if file is None:
        from qkv.cli.draw import draw

        draw(found[0], top, second)
    else:
        for one, result in zip(texts, found, strict=True):
            print(_line(one, result))
    for i, result in enumerate(found):
        if told := _told(result):
            note(told if file is None else f"line {i + 1:,}: {told}")


def _inputs(
    text: str | None, pair: str | None, question: str | None, context: str | None, file: str | None
) -> tuple[list[str], str | None]:
    """The texts, and the second text of all. InputError: two options for one of these."""
    if sum(one is not None for one in (text, question, file)) > 1:
        raise InputError("TEXT, --question and --file each give the text: give one of them")
    if pair is not None and (context is not None or question is not None):
        raise InputError("--pair is the second text of a pair; a question has a --context")
    if file is not None:
        lines = (read_stdin("text") if file == "-" else read_file(file)).removesuffix("\n").split("\n")
        texts = [line.removesuffix("\r") for line in lines]
    elif question is not None:
        texts = [question]
        context = read_stdin("context") if context is None else context
    else:
        texts = [read_stdin("text") if text is None else text]
    if context is not None and context.startswith("@"):
        context = read_file(context[1:])
    return texts, pair if context is None else context


def _predict(model: "Model", texts: list[str], second: str | None, options: dict[str, Any]) -> list[Any]:
    from qkv import spec

    if isinstance(model.spec.head, spec.Classify):
        options.pop("top", None)  # rows to show: all labels have their scores
    try:
        return list(model.predict(texts, second, **options))
    except InputError as error:  # names texts[n] where a person counts lines, and arguments where there are options
        said = re.sub(r"^texts\[(\d+)\]", lambda at: f"line {int(at[1]) + 1:,}", str(error))
        said = re.sub(r"\bon_long='(\w+)'", r"--on-long \1", said)
        raise InputError(said.replace("as the second text", "by --context")) from error


def _print_json(model: "Model", texts: list[str], found: list[Any], lines: bool) -> None:
    if lines:
        import json

        for text, result in zip(texts, found, strict=True):
            print(json.dumps({"text": text, **result.to_dict()}, allow_nan=False))
        return
    about = {"model": model.source.origin if model.source else None, "dtype": str(model.dtype).removeprefix("torch.")}
    print_json({**about, "text": texts[0], **found[0].to_dict(), "notes": list(model.notes)})


def _line(text: str, result: Any) -> str:
    """One result on one line, with its text."""
    from qkv.tasks.result import Answered, Classification

    said = f"{result}\t{text}" if isinstance(result, Answered | Classification) else str(result)
    said = said.replace("\n", " ")
    return said.translate(answer.CONTROLS) if sys.stdout.isatty() else said


def _told(result: Any) -> str:
    """What became of a text that the model couldn't read at once."""
    if getattr(result, "unread", 0):
        return f"{result.unread} tokens at the end were left out"
    windows = getattr(result, "windows", 1)
    return f"read in {windows} windows" if windows > 1 else ""
