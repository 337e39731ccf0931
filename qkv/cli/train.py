"""`qkv train RECIPE`: a run from a recipe, begun or gone on with; or what it would cost."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkv.cli.console import JsonOption, binary, note, out, print_json, short
from qkv.errors import InputError

if TYPE_CHECKING:
    from qkv.train.estimate import Estimate
    from qkv.train.recipe import Recipe

RUNS = Path("runs")
STOPPED = 75  # sysexits.h, EX_TEMPFAIL: "the user is invited to retry"


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe: a TOML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes of it: train.lr=3e-4 data.limit=1000 train.clip=none"),
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="The run's folder; runs/NAME here if not given.")] = None,
    resume: Annotated[
        str, typer.Option(metavar="auto|never|STEP", help="Go on where the folder's run is, never, or at a step.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and train nothing.")] = False,
    allow_changed: Annotated[
        bool,
        typer.Option("--allow-changed", help="Go on though recipe, data or tokenizer have changed since it began."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a model, or go on training it.

    What is in the folder is gone on with, if it is of the same recipe. SIGTERM and Ctrl-C save everything first; a
    second one ends at once. Several processes: torchrun --nproc-per-node N -m qkv train …

    Exit codes: 0 done; 1 an error, which is named; 2 wrong usage; 75 stopped by a signal with everything saved: run
    the same command to go on.

    Example: qkv train recipes/char-lm.toml train.steps=500
    """
    from qkv.train.recipe_file import load

    wanted = load(recipe, overrides or ())
    target = folder if folder is not None else RUNS / _name(wanted)
    step = _step(resume)
    if dry_run:
        _estimate(wanted, target, json)
        return
    from qkv.train.run import train as run
    from qkv.train.stop import Stopped

    try:
        done = run(wanted, target, resume=step, allow_changed=allow_changed)
    except Stopped as stopped:  # before the first step, or after the last
        note(f"{stopped}: what {target} holds is whole")
        raise typer.Exit(STOPPED) from None
    if json and os.environ.get("RANK", "0") == "0":
        print_json(done.to_dict())
    if done.stopped:
        raise typer.Exit(STOPPED)


def _name(recipe: "Recipe") -> str:
    """The run's name as that of a folder. InputError: it is none."""
    if Path(recipe.name).name != recipe.name or recipe.name in ("", ".", ".."):
        raise InputError(f"the recipe's name, {recipe.name!r}, is none of a folder: change it, or say --out")
    return recipe.name


def _step(resume: str) -> str | int:
    """--resume as the run takes it. InputError: neither a word nor a step."""
    if resume in ("auto", "never"):
        return resume
    if not (resume.isascii() and resume.isdigit()):
        raise InputError(f"--resume {resume!r} is none of auto, never, or a step's number")
    return int(resume)


# --- --dry-run ------------------------------------------------------------------------------------------------------


def _estimate(recipe: "Recipe", target: Path, json: bool) -> None:
    from qkv.train.estimate import estimate
    from qkv.train.peak import gemm_peak
    from qkv.train.preview import preview
    from qkv.train.recipe_file import resolved

    seen = preview(recipe)
    device = _device()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    found = estimate(recipe, seen.model, seen.read, peak=gemm_peak(recipe.train.dtype, device), world=world)
    notes = [*found.guesses, *seen.notes]
    if json:
        told = {"name": recipe.name, "folder": str(target), "device": device, "records": seen.read.records}
        print_json({**told, **found.to_dict(), "guesses": notes, "recipe": resolved(recipe)})
        return
    _print(recipe, found, seen.model.family or "its own spec", seen.read.records, target)
    for text in notes:
        note(f"guess: {text}")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _print(recipe: "Recipe", found: "Estimate", family: str, records: int, target: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, words in _rows(recipe, found, family, records):
        table.add_row(name, Text(words))
    console = out()
    console.print(Text.assemble((recipe.name, "bold"), f"  → {target}"), soft_wrap=True)
    console.print(table)


def _rows(recipe: "Recipe", found: "Estimate", family: str, records: int) -> list[tuple[str, str]]:
    frozen = f" ({short(found.frozen)} stay as they are)" if found.frozen else ""
    parts = " + ".join(f"{binary(size)} {what}" for what, size in found.memory.items() if size)
    steps = "not known" if found.steps is None else f"{found.steps:,}"
    tokens = "" if found.tokens is None else f", {short(found.tokens)} tokens in all"
    whole = "" if found.flops is None else f"; {short(found.flops, 'KMGTPE')}FLOP in all"
    peak = f"{short(found.peak_flops, 'KMGTP')}FLOP/s in {recipe.train.dtype}, as just measured"
    return [
        ("model", f"{recipe.model.origin or family}, {found.parameters:,} parameters{frozen}"),
        ("objective", recipe.objective.kind),
        ("data", f"{records:,} records"),
        ("steps", f"{steps} of {found.tokens_per_step:,} tokens{tokens}"),
        ("arithmetic", f"{short(found.flops_per_token, 'KMGTP')}FLOP a token{whole}"),
        ("memory", f"{binary(sum(found.memory.values()))}: {parts}"),
        ("peak", peak),
        ("speed", f"about {found.tokens_per_second:,.0f} tokens/s at {found.efficiency:.0%} of it"),
        ("time", "not known" if found.seconds is None else f"about {_time(found.seconds)}"),
    ]


def _time(seconds: float) -> str:
    """4 s, 12 min, 3 h 20 min, 5 days 2 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} days {hours % 24} h"
