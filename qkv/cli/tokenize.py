"""`qkv tokenize TEXT`: how a model's tokenizer cuts a text, or (--decode) what ids say. No weights, no torch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.console import DEFAULT_MODEL, JsonOption, ModelOption, note, out, print_json, read_stdin
from qkv.errors import InputError, TokenizerError

if TYPE_CHECKING:
    from qkv.inputs.text import Tokenizer

_VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"})
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


def tokenize(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; standard input if not given.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    decode: Annotated[
        str | None, typer.Option(metavar="IDS", help="Print the text of these ids: 504,3575,282.")
    ] = None,
    special: Annotated[bool, typer.Option(help="Add what the tokenizer puts around a text (BOS and such).")] = True,
    json: JsonOption = False,
) -> None:
    """How a text is cut into tokens.

    Each piece stands above its id; --decode goes the other way. Example: qkv tokenize "Hello world"
    """
    if decode is not None and text is not None:
        raise InputError("--decode takes the ids; leave out the text")
    if decode is not None:
        ids = _ids(decode)
        tokenizer = _load(model)
        text = tokenizer.decode(ids, skip_special=False)
        if not json:
            print(text)
            return
    else:
        text = read_stdin("text") if text is None else text
        tokenizer = _load(model)
        ids = tokenizer.encode(text, special=special)
    pieces = _pieces(tokenizer, ids)
    if json:
        tokens = [
            {"id": id, "token": tokenizer.token(id), "text": piece} for id, piece in zip(ids, pieces, strict=True)
        ]
        print_json({"model": model, "text": text, "count": len(ids), "tokens": tokens})
    else:
        _print(tokenizer, ids, pieces)
        _sum_up(text, ids)


def _load(ref: str) -> "Tokenizer":
    from qkv.inputs.text import Tokenizer
    from qkv.load.describe import describe

    found = describe(ref)
    if found.gguf is not None:
        return Tokenizer.from_gguf(found.gguf.metadata)
    if found.folder is None or "tokenizer.json" not in found.folder.tokenizer:
        raise TokenizerError(f"{found.source.path}: no tokenizer.json here")
    return Tokenizer.from_folder(found.folder.root)


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    wrong = [word for word in words if not word.isascii() or not word.isdigit()]
    if wrong or not words:
        raise InputError(f"--decode takes whole numbers, as 504,3575,282; got {wrong[0] if wrong else text!r}")
    return [int(word) for word in words]


def _pieces(tokenizer: "Tokenizer", ids: list[int]) -> list[str]:
    """The text that each id adds; "" where a character is not complete yet."""
    decoder = tokenizer.stream(skip_special=False)
    return [decoder.push(id) for id in ids]


def _print(tokenizer: "Tokenizer", ids: list[int], pieces: list[str]) -> None:
    """Pieces above their ids, as many beside each other as the console is wide."""
    from rich.text import Text

    console = out()
    above, below = Text(), Text()
    for i, (id, piece) in enumerate(zip(ids, pieces, strict=True)):
        shown = Text(
            (piece or tokenizer.token(id)).translate(_VISIBLE), "dim" if not piece else _COLOURS[i % len(_COLOURS)]
        )
        width = max(shown.cell_len, len(str(id))) + 1
        if above.cell_len + width > console.width and above.cell_len:
            console.print(above, below, sep="\n", soft_wrap=True)
            above, below = Text(), Text()
        above.append_text(shown).append(" " * (width - shown.cell_len))
        below.append(str(id).ljust(width), style="dim")
    console.print(above, below, sep="\n", soft_wrap=True)


def _sum_up(text: str, ids: list[Any]) -> None:
    if ids:
        note(f"{len(ids)} tokens, {len(text)} characters, {len(text) / len(ids):.2f} characters a token")
    else:
        note("0 tokens")
