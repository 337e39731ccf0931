"""`qkv doctor`: what qkv finds where it runs, which path it takes and why, and whether its kernels multiply right."""

from typing import TYPE_CHECKING

import typer

from qkv.cli.console import JsonOption, binary, out, print_json

if TYPE_CHECKING:
    from qkv.cli.machine import Machine


def doctor(json: JsonOption = False) -> None:
    """Say what qkv finds on this machine, and check its native kernels.

    Versions, processor, memory, GPUs, which kernels run and why, caches, models, extras. Exit code 1 where an answer
    would be wrong; what is merely slow or missing is told with the way out.
    """
    from dataclasses import asdict

    from qkv.cli.machine import look

    machine = look()
    if json:
        print_json({"healthy": not machine.problems, **asdict(machine)})
    else:
        _print(machine)
    if machine.problems:
        raise typer.Exit(1)


def _print(machine: "Machine") -> None:
    from rich.text import Text

    console = out()
    for title, lines in _rows(machine).items():
        for i, line in enumerate(lines):
            console.print(Text.assemble((f"{title if i == 0 else '':10}", "bold"), line), soft_wrap=True)
    for style, mark, texts in (("yellow", "! ", machine.notes), ("red", "✗ ", machine.problems)):
        for text in texts:
            console.print(Text.assemble((mark, style), text), soft_wrap=True)
    count = len(machine.problems)
    verdict = ("sound", "bold green") if not count else (f"{count} problem{'s' * (count > 1)}", "bold red")
    console.print(Text.assemble(("qkv: ", "bold"), verdict))


def _rows(machine: "Machine") -> dict[str, list[str]]:
    versions = [f"{name} {version}" for name, version in machine.versions.items()]
    rows = {"versions": [", ".join(versions[:3]), ", ".join(versions[3:])]}
    if about := machine.processor:
        rows["processor"] = [
            f"{about['name']}, {about['cores']} cores, torch uses {about['threads']} threads ({about['torch']})",
            " ".join(about["instructions"]) or f"{about['machine']}; its instructions aren't known here",
        ]
    rows["memory"] = [", ".join(f"{binary(size)} {name}" for name, size in machine.memory.items()) or "not known here"]
    rows["GPU"] = machine.gpus or ["none that torch sees"]
    if machine.native:
        rows["kernels"] = [machine.native["reason"]]
    if errors := machine.native.get("errors"):
        checked = [f"{kind} {'NaN' if error is None else f'{error:.0e}'}" for kind, error in errors.items()]
        rows["kernels"].append("errors of a product: " + ", ".join(checked))
    rows["caches"] = [_cache(**cache) for cache in machine.caches]
    rows["models"] = [_model(**model) for model in machine.models]
    rows["extras"] = [
        f"{name}: " + (f"pip install 'qkv[{name}]' for {', '.join(missing)}" if missing else "there")
        for name, missing in machine.extras.items()
    ]
    rows["settings"] = [f"{name}={value}" for name, value in machine.settings.items()]
    return rows


def _cache(name: str, path: str, bytes: int, counted: bool, writable: bool) -> str:
    size = f"{'' if counted else 'more than '}{binary(bytes)}"
    return f"{name}: {path}, {size}{'' if writable else ', read only'}"


def _model(ref: str, alias: str | None, bytes: int | None) -> str:
    name = f"{alias} = {ref}" if alias else ref
    return f"{name}, " + (binary(bytes) if bytes is not None else f"not here: qkv pull {alias}")
