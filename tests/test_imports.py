"""Imports run one way, wherever they stand in a file, and what needs no torch doesn't load it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qkv

ROOT = Path(qkv.__file__).parent
LEVELS = (  # a module imports from its own package and from the levels below
    {"qkv", "__main__"},
    {"cli"},
    {"serve", "train"},
    {"look"},  # which the page of `serve` shows
    {"model"},
    {"generate", "adapt", "tasks"},
    {"load"},  # which asks `inputs` for a checkpoint's tokenizer
    {"inputs"},
    {"families"},
    {"nn"},
    {"kernels"},
    {"count", "specfile"},
    {"spec"},
    {"part", "paths", "strict_json", "write"},
    {"errors"},
)
ONLY = {  # closer than the levels say
    "families": {"families", "specfile", "spec", "errors"},
    "nn": {"nn", "kernels", "spec", "errors"},
    "kernels": {"kernels", "paths", "errors"},
    "inputs": {"inputs", "strict_json", "write", "errors"},
}
ALLOWED = {  # the command says which qkv it is; the root knows
    ("qkv/cli/app.py", "qkv.__version__"),
    ("qkv/cli/machine.py", "qkv.__version__"),
}
WITHOUT_TORCH = {"errors", "part", "paths", "strict_json", "write", "spec", "specfile", "count", "families"}
DYNAMIC = {"__init__.py", "families/family.py"}  # names on first use; a family by its checked name

FILES = sorted(ROOT.rglob("*.py"))
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, in functions too."""
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(name: str) -> str:
    """The part of the house that a name belongs to: qkv.nn.mask.Mask → nn, qkv.__version__ → qkv."""
    top = name.split(".")[1]
    return top if (ROOT / top).is_dir() or (ROOT / f"{top}.py").is_file() else "qkv"


def level(house: str) -> int:
    places = [i for i, names in enumerate(LEVELS) if house in names]
    assert places, f"qkv/{house} has no place in LEVELS"
    return places[0]


def place(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "qkv" if first == "__init__" else first


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_way(path: Path) -> None:
    own, told = place(path), f"qkv/{path.relative_to(ROOT).as_posix()}"
    for name in imported(path):
        if name.split(".")[0] != "qkv" or name == "qkv" or (told, name) in ALLOWED:
            continue
        to = home(name)
        assert to == own or level(own) < level(to), f"{told} imports {name}: {own} stands below {to}"
        assert to in ONLY.get(own, {to}), f"{told} imports {name}: {own} may see {sorted(ONLY[own])} only"


def test_what_a_model_is_needs_no_torch() -> None:
    for path in FILES:
        if place(path) in WITHOUT_TORCH:
            assert not {name.split(".")[0] for name in imported(path)} & {"torch", "numpy", "transformers"}, path


def test_nothing_else_is_imported_by_a_computed_name() -> None:
    for path, tree in SOURCES.items():
        calls = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if calls & {"import_module", "__import__"}:
            assert path.relative_to(ROOT).as_posix() in DYNAMIC


def test_allowances_are_used() -> None:
    assert {(f"qkv/{p.relative_to(ROOT).as_posix()}", n) for p in FILES for n in imported(p)} >= ALLOWED


def test_torch_is_not_loaded_before_a_model_is_built() -> None:
    code = """
import importlib, pkgutil, sys
import qkv, qkv.spec, qkv.specfile, qkv.count, qkv.cli.app, qkv.families
for module in pkgutil.iter_modules(qkv.families.__path__):
    importlib.import_module("qkv.families." + module.name)
assert "torch" not in sys.modules, "imports"
sys.argv = ["qkv", "--help"]
try:
    qkv.cli.main()
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules, "--help"
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_the_spec_is_there_as_soon_as_qkv_is() -> None:
    code = "import qkv; qkv.spec.RMS()"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
