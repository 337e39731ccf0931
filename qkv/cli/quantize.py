"""`qkv quantize MODEL`: a folder with the model's matrices in 8 or 4 bits."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli.console import JsonOption, binary, note, out, print_json, progress
from qkv.errors import InputError
from qkv.load.folder import SINGLE
from qkv.load.scheme import GROUP, SCHEMES

if TYPE_CHECKING:
    from qkv.adapt.quantize import Matrix, Quantized
    from qkv.load.describe import Described

_KINDS = ("F64", "F32", "F16", "BF16")  # of a GGUF file's tensors that aren't packed


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model reference.")],
    to: Annotated[str, typer.Option(help=f"Bits a weight: {', '.join(SCHEMES)}.")] = "int4",
    group: Annotated[int, typer.Option(help=f"Weights that share a scale: {GROUP}, as the kernels have it.")] = GROUP,
    tables: Annotated[str, typer.Option(help="The same for the table of tokens, and a head of its own.")] = "int8",
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder to write, a new one; NAME-int4 here if not given.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a model again with its matrices in 8 or 4 bits.

    The vocabulary's are in 8, if not told otherwise. Norms, biases and what can't be packed stay as they are; the table
    says what was packed and how far off it is. The folder is loaded as any other, and its matrices stay packed in
    memory. Example: qkv quantize smollm2 --to int8
    """
    from qkv.adapt.quantize import check
    from qkv.adapt.quantize import quantize as pack
    from qkv.load.describe import describe
    from qkv.model import load, save

    for scheme in (to, tables):
        check(scheme, group)
    described = describe(model, config_only=False)
    target = folder if folder is not None else Path(f"{_name(described)}-{to}")
    if target.exists():
        raise InputError(f"{target} is there already; choose another folder by --out, or remove it first")
    source, said = _source(described)
    with _whole(target) as making:
        loaded = load(described.source.path, "float32" if described.gguf is not None else None)
        with progress("quantizing") as over:
            done = pack(loaded, to, group, over=over, tables=tables)
        save(loaded, making)
    found = {"model": model, "origin": described.source.origin, "path": str(target), "source": source}
    notes = [*said, *loaded.notes, *done.notes]
    if json:
        print_json({**found, **_report(done, group), "notes": notes})
        return
    _print(done, target)
    for text in notes:
        note(text)


def _name(described: "Described") -> str:
    """A folder's name for a model: of its file, folder or repository, without version and revision."""
    source = described.source
    if Path(source.ref).expanduser().exists():
        path = source.path.resolve()
        return path.parent.name if path.name == SINGLE else path.stem if path.is_file() else path.name
    return re.split(r"==|[@:]", source.ref.removeprefix("pypi:"))[0].rsplit("/", 1)[-1]


def _source(described: "Described") -> tuple[str, list[str]]:
    """What the weights are stored as, and what is to be said of that. InputError: it is quantized already."""
    if described.scheme is not None:
        raise InputError(
            f"{described.source.ref} is {described.scheme.words} already: quantize the checkpoint that it was made of"
        )
    if described.gguf is None:
        return "safetensors", []
    packed = [kind for kind in described.stored() if kind not in _KINDS]
    said = f"the GGUF file's {', '.join(packed)} weights were unpacked first: their own rounding is in the result"
    return "GGUF", [said] if packed else []


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` once the body is done, or else goes. InputError: none can be made there,
    or it can't be filled."""
    making = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        making.mkdir(parents=True)
        yield making
        making.rename(target)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{target} can't be written: {why}; choose another folder by --out") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _kinds(done: "Quantized") -> dict[str, list["Matrix"]]:
    """The matrices by their name, whatever their layer."""
    kinds: dict[str, list[Matrix]] = {}
    for matrix in done.packed:
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", matrix.name).removesuffix(".weight"), []).append(matrix)
    return kinds


def _report(done: "Quantized", group: int) -> dict[str, Any]:
    kinds = {
        name: {
            "to": of[0].to,
            "tensors": len(of),
            "bytes_before": sum(matrix.before for matrix in of),
            "bytes_after": sum(matrix.after for matrix in of),
            "mean_error": sum(matrix.error for matrix in of) / len(of),
            "worst_error": max(matrix.error for matrix in of),
        }
        for name, of in _kinds(done).items()
    }
    sizes = {"bytes_before": done.before, "bytes_after": done.after, "ratio": done.before / done.after}
    about = {"to": done.to, "group": group, "tensors": len(done.packed), **sizes}
    return {**about, "kinds": kinds, "plain": dict(done.plain)}


def _print(done: "Quantized", target: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("matrices", style="cyan", no_wrap=True)
    for title in ("to", "tensors", "before", "after", "mean error", "worst"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in _report(done, GROUP)["kinds"].items():
        before, after = binary(row["bytes_before"]), binary(row["bytes_after"])
        errors = (f"{row['mean_error']:.2%}", f"{row['worst_error']:.2%}")
        table.add_row(Text(name), row["to"], str(row["tensors"]), before, after, *errors)
    console = out()
    console.print(table)
    sizes = f"{binary(done.before)} → {binary(done.after)}, {done.before / done.after:.2f} times smaller"
    console.print(Text.assemble((f"{len(done.packed)} tensors packed", "bold"), f"  {sizes}"))
    console.print(str(target), markup=False, soft_wrap=True)
