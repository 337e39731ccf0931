"""`qkv diff A B`: two specs side by side, what differs in colour. No torch, no weights."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.console import JsonOption, binary, out, print_json, short

if TYPE_CHECKING:
    from rich.table import Table

    from qkv.cli.known import Sketch


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A model reference, a config.json, or a known name: gpt2.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    json: JsonOption = False,
) -> None:
    """Two models side by side.

    What differs is in colour. Example: qkv diff gpt2 llama-2-7b
    """
    from qkv.cli.known import sketch

    left, right = sketch(a), sketch(b)
    if json:
        print_json(_report(left, right))
    else:
        _print(left, right)


def _report(left: "Sketch", right: "Sketch") -> dict[str, Any]:
    from qkv import count
    from qkv.spec import Part
    from qkv.specfile import diff as changes
    from qkv.specfile import to_dict

    def data(value: Any) -> Any:
        if isinstance(value, tuple):
            return [data(v) for v in value]
        return to_dict(value) if isinstance(value, Part) else value

    def costs(found: "Sketch") -> dict[str, Any]:
        numbers = {
            "parameters": count.parameters(found.spec),
            "kv_bytes_per_token": count.kv_bytes_per_token(found.spec),
        }
        return {"model": found.ref, "origin": found.origin, "family": found.spec.family, **numbers}

    found = changes(left.spec, right.spec)
    return {
        "a": costs(left),
        "b": costs(right),
        "equal": not found,
        "changes": [{"path": c.path, "a": data(c.left), "b": data(c.right)} for c in found],
    }


def _print(left: "Sketch", right: "Sketch") -> None:
    console = out()
    for found in (left, right):
        console.print(found.origin, style="dim", markup=False, soft_wrap=True)
    console.print()
    console.print(table(left, right))
    if left.spec == right.spec:
        console.print("\nthe two specs are equal")


def table(left: "Sketch", right: "Sketch") -> "Table":
    """A row for each aspect, in yellow where the two differ."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("", style="cyan", no_wrap=True)
    for found in (left, right):
        grid.add_column(Text(found.ref), overflow="fold", ratio=1)
    named = max(len(found.spec.stacks) for found in (left, right)) > 1
    ours, theirs = (dict(_lines(found, named)) for found in (left, right))
    for aspect in _merged(list(ours), list(theirs)):
        a, b = ours.get(aspect, "none"), theirs.get(aspect, "none")
        style = "dim" if a == b else "yellow"
        grid.add_row(aspect, Text(a, style), Text(b, style))
    return grid


def _merged(a: list[str], b: list[str]) -> list[str]:
    """All names of both in their orders: what `a` lacks stands behind what is before it in `b`."""
    names, place = list(a), 0
    for name in b:
        if name not in names:
            names.insert(place, name)
        place = names.index(name) + 1
    return names


def _lines(found: "Sketch", named: bool) -> list[tuple[str, str]]:
    from qkv import count
    from qkv.cli.words import lines

    total, held = count.parameters(found.spec), count.kv_bytes_per_token(found.spec)
    return [
        *lines(found.spec, named=named),
        ("parameters", f"{total:,} ({short(total)})"),
        ("cache a token", f"{binary(held)} in 16 bits"),
    ]
