"""What all verbs share: results on standard output, everything else on standard error, numbers as people read them."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_MODEL = "smollm2"
DTYPES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Alias, folder, .gguf or .safetensors file, org/name[@revision], or pypi:NAME==VERSION."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def out() -> "Console":
    """Standard output. Colours only on a terminal, and none where NO_COLOR is set."""
    from rich.console import Console

    return Console(highlight=False)


def err() -> "Console":
    """Standard error, for what rich draws there."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(text: str, end: str = "\n") -> None:
    """A dim line on standard error. (Without rich, whose import a first token would wait for.)"""
    print(_painted(text, "2"), end=end, file=sys.stderr, flush=True)


def _painted(text: str, style: str) -> str:
    """The text in an ANSI style where standard error is a terminal with colours (https://no-color.org)."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


@contextmanager
def progress(doing: str) -> Iterator[Callable[[Sequence[str]], Iterable[str]]]:
    """Gives names one by one, under a bar on standard error where that is a terminal."""
    from rich.progress import Progress

    with Progress(console=err(), disable=not err().is_terminal, transient=True) as bar:
        yield lambda names: bar.track(names, description=doing)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, ensure_ascii=not utf8, allow_nan=False))


def fail(error: Exception, *, as_json: bool) -> None:
    """One red "error: …" on standard error; with --json also as an object on standard output."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    print(_painted("error:", "1;31"), message, file=sys.stderr, flush=True)
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message}})


def read_stdin(what: str) -> str:
    """All of standard input as text, without the last line's end. InputError: it is a terminal, empty, or no UTF-8."""
    from qkv.errors import InputError

    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"no {what} was given: write it after the verb, or pipe it in")
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte {error.start})") from error
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise InputError(f"no {what} was given: standard input is empty")
    return text


def read_file(path: str) -> str:
    """A whole file as text, as it is. NotFound; InputError: it is empty, or not UTF-8."""
    from qkv.errors import InputError, NotFound

    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start})") from error
    if not text:
        raise InputError(f"{path} is empty: there is nothing to read")
    return text


def binary(size: float) -> str:
    """Bytes in powers of 1024: 320 KiB, 2.5 MiB, 128.5 GiB."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size, power = size / 1024, power + 1
    return f"{_short(size)} {units[power]}"


def short(number: float, units: str = "KMBT") -> str:
    """A count in words: 134.5 M, 68.98 B; `units` name the thousands, millions and so on."""
    power = 0
    while number >= 1000 and power < len(units):
        number, power = number / 1000, power + 1
    return f"{_short(number)} {units[power - 1]}" if power else _short(number)


def _short(number: float) -> str:
    text = f"{number:,.{1 if number >= 100 else 2}f}"
    return text.rstrip("0").rstrip(".")
