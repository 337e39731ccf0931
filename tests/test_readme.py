"""The parts of README.md that are made from the code are true today. `python -m tests.test_readme` writes them anew."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

from qkv.families.summary import table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ORDER = ["spec", "part", "specfile", "count", "errors", "model"]
READ_IN_ORDER = {
    "nn": [
        "attention",
        "position",
        "mask",
        "attend",
        "cache",
        "norm",
        "mlp",
        "block",
        "embed",
        "stack",
        "head",
        "batch",
        "linear",
        "parts",
    ],
}


def tree() -> str:
    """Every file of the package, with the first words of what it says of itself."""
    lines = ["qkv/"]
    top = [p for p in (ROOT / "qkv").glob("*.py") if not p.stem.startswith("__")]
    top.sort(key=lambda p: ORDER.index(p.stem) if p.stem in ORDER else len(ORDER))
    lines += [_line(p, 2) for p in top]
    for folder in sorted(p for p in (ROOT / "qkv").iterdir() if (p / "__init__.py").exists()):
        files = [p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
        order = READ_IN_ORDER.get(folder.name, [])
        files.sort(key=lambda p: order.index(p.stem) if p.stem in order else len(order))
        lines += [f"  {folder.name}/", *(_line(p, 4) for p in files)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _line(path: Path, indent: int) -> str:
    """A file and the first sentence of its docstring, up to 92 characters."""
    said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
    first = re.split(r"[.:](?= [A-Z`]|$)|:$", said, maxsplit=1)[0] if len(said) > 92 else said.rstrip(".")
    if len(first) < 20:
        first = said
    return f"{' ' * indent}{path.name:<{26 - indent}}{textwrap.shorten(first.rstrip('.'), 92, placeholder=' …')}"


MADE = {"families": table, "tree": tree}


def _section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.S)


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_from_the_code_is_true(name: str) -> None:
    match = _section(name).search(README.read_text())
    assert match, f"README.md has no section {name}"
    assert match[2] == MADE[name](), "run `python -m tests.test_readme`"


def test_the_first_two_commands_are_there() -> None:
    text = README.read_text()
    assert re.findall(r"^    (pip install .*)$", text, re.M) == [
        'pip install . && qkv generate "The capital of France is"',
        "pip install '.[dev]' && pytest",
    ]


if __name__ == "__main__":
    text = README.read_text()
    for name, make in MADE.items():
        text = _section(name).sub(lambda m, make=make: m[1] + make() + m[3], text)
    README.write_text(text)
