"""`qkv show MODEL`: what a model is and what it costs, from its config alone. Nothing is allocated, no torch."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.console import DTYPES, JsonOption, binary, out, print_json, short
from qkv.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from qkv.cli.known import Sketch, Stored


def show(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model reference, a config.json, or a known name: gpt2.")
    ],
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens a sequence; the model's own if not given.")] = None,
    dtype: Annotated[str, typer.Option(help=f"Numbers are held as: {', '.join(DTYPES)}.")] = "bfloat16",
    toml: Annotated[bool, typer.Option("--toml", help="Print the spec alone, as TOML.")] = False,
    json: JsonOption = False,
) -> None:
    """What a model is and what it costs.

    Parts, parameters, cache, memory and arithmetic, from the config alone: nothing is allocated, no weights are needed.
    Example: qkv show llama-2-70b --batch 8 --context 4096
    """
    from qkv.cli.known import sketch
    from qkv.specfile import to_toml

    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if toml and json:
        raise InputError("--toml and --json: choose one")
    found = sketch(model)
    if toml:
        print(to_toml(found.spec), end="")
        return
    costs = _costs(found, batch, context or found.spec.context or 2048, dtype)
    if json:
        print_json(costs)
    else:
        _print(found, costs)


def _costs(found: "Sketch", batch: int, context: int, dtype: str) -> dict[str, Any]:
    from qkv import count
    from qkv.specfile import to_dict

    spec, each = found.spec, DTYPES[dtype]
    memory = count.memory(spec, batch, context, each)
    return {
        "model": found.ref,
        "origin": found.origin,
        "family": spec.family,
        "spec": to_dict(spec),
        "parameters": count.parameters(spec),
        "parameters_by_part": count.parameters_by_part(spec),
        "dtype": dtype,
        "batch": batch,
        "context": context,
        "kv_bytes_per_token": count.kv_bytes_per_token(spec, each),
        "kv_bytes_per_token_multi_head": count.kv_bytes_per_token(count.multi_head(spec), each),
        "weight_bytes": memory.weights,
        "cache_bytes": memory.cache,
        "memory_bytes": memory.total,
        "flops_per_token": count.flops_per_token(spec, context),
        "stored_bytes": dict(found.stored.kinds) if found.stored is not None else {},
        "notes": list(found.notes),
    }


def _print(found: "Sketch", costs: dict[str, Any]) -> None:
    from rich.text import Text

    from qkv.cli.words import lines

    console = out()
    console.print(Text.assemble((found.ref, "bold"), f"  {found.title}" if found.title else ""))
    if found.origin != found.ref:
        console.print(found.origin, style="dim", markup=False, soft_wrap=True)
    table = _grid()
    for aspect, words in lines(found.spec):
        table.add_row(aspect, Text(words))
    if found.stored is not None:
        table.add_row("stored as", _words(found.stored))
    console.print(table)
    console.print()
    console.print(_parameters(costs))
    console.print()
    console.print(_bill(costs))
    for text in found.notes:
        console.print(f"note: {text}", style="dim", markup=False, soft_wrap=True)


def _grid() -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    return table


def _parameters(costs: dict[str, Any]) -> "Table":
    from rich.table import Table

    total = costs["parameters"]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    table.add_row("parameters", f"[bold]{total:,}[/]", short(total))
    for part, number in costs["parameters_by_part"].items():
        table.add_row(f"  {part}", f"{number:,}", f"{number / total:.1%}")
    return table


def _bill(costs: dict[str, Any]) -> "Table":
    own, full = costs["kv_bytes_per_token"], costs["kv_bytes_per_token_multi_head"]
    saved = f"; multi-head it would be {binary(full)}, {short(full / own)} times as much" if full > own else ""
    sequences = f"{costs['batch']:,} × {costs['context']:,} tokens"
    weights, cache = binary(costs["weight_bytes"]), binary(costs["cache_bytes"])
    table = _grid()
    table.add_row("cache", f"[bold]{binary(own)}[/] a token in {costs['dtype']}{saved}")
    table.add_row(
        "memory", f"[bold]{binary(costs['memory_bytes'])}[/] for {sequences}: {weights} weights + {cache} cache"
    )
    table.add_row(
        "arithmetic", f"{short(costs['flops_per_token'], 'KMGTP')}FLOP a token that sees {costs['context']:,}"
    )
    return table


def _words(stored: "Stored") -> str:
    kinds = ", ".join(f"{kind} {binary(size)}" for kind, size in stored.kinds.items())
    return f"{stored.format}: {kinds}" if kinds else stored.format
