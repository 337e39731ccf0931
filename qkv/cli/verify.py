"""`qkv verify MODEL`: is this checkpoint sound? Every tensor is read once, then the model is loaded and tried."""

from typing import TYPE_CHECKING, Annotated

import typer

from qkv.cli.console import JsonOption, out, print_json, progress

if TYPE_CHECKING:
    from qkv.cli.health import Health


def verify(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model reference.")],
    json: JsonOption = False,
) -> None:
    """Check that a checkpoint is sound.

    NaN and infinities, matrices of zeros, ties, missing and left-over tensors, the tokenizer's ids, the logits of a
    short text. Exit code 1 where something is wrong.
    """
    from qkv.cli.health import admit, examine

    patient = admit(model)
    with progress("reading tensors") as over:
        health = examine(patient, over(patient.names))
    if json:
        print_json(health.to_dict())
    else:
        _print(health)
    if health.problems:
        raise typer.Exit(1)


def _print(health: "Health") -> None:
    from rich.text import Text

    console = out()
    console.print(health.described.source.origin, style="dim", markup=False, soft_wrap=True)
    kinds = (("green", "✓ ", health.checks), ("dim", "- ", health.notes), ("red", "✗ ", health.problems))
    for style, mark, texts in kinds:
        for text in texts:
            console.print(Text.assemble((mark, style), text), soft_wrap=True)
    count = len(health.problems)
    verdict = ("sound", "bold green") if not count else (f"{count} problem{'s' * (count > 1)}", "bold red")
    console.print(Text.assemble((f"{health.described.source.ref}: ", "bold"), verdict))
