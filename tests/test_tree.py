"""The house keeps its own rules: short files, packages that do nothing, a test for each module, words for each name."""

import ast
from pathlib import Path

import pytest

import qkv

ROOT = Path(qkv.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LONGER = {"spec.py"}  # every part there is, side by side
ELSEWHERE = {  # modules whose test has another name
    "__init__.py": "test_model.py",
    "__main__.py": "cli/test_app.py",
    "errors.py": "test_tree.py",
    "part.py": "test_spec.py",
    "cli/answer.py": "cli/test_generate.py",
    "cli/health.py": "cli/test_verify.py",
    "inputs/folder.py": "inputs/test_text.py",
    "inputs/regexes.py": "inputs/test_guard.py",
    "inputs/sandbox.py": "inputs/test_template.py",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SOURCES = {name(path): path.read_text(encoding="utf-8") for path in FILES}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}
FAMILIES = {path for path, source in SOURCES.items() if path.startswith("families/") and "\nFAMILY = " in source}


@pytest.mark.parametrize("path", SOURCES)
def test_files_are_short(path: str) -> None:
    assert SOURCES[path].count("\n") <= (500 if path in LONGER else 300)


def test_packages_do_no_work() -> None:
    for path, tree in TREES.items():
        if path.endswith("/__init__.py"):
            said = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
            assert not said or (len(said) == 1 and ast.get_docstring(tree)), f"{path} does something when imported"


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.endswith("/__init__.py")])
def test_each_module_has_its_tests(path: str) -> None:
    """Families are tested by existing: tests/families/test_parity.py runs over the folder."""
    own = f"{Path(path).parent}/test_{Path(path).name}"
    if path in FAMILIES:
        own = "families/test_parity.py"
    elif path in ELSEWHERE:
        assert not (TESTS / own).is_file(), "it has a test of its name: drop the exception"
        own = ELSEWHERE[path]
    assert (TESTS / own).is_file(), f"write tests/{own}, or name its test in ELSEWHERE"


def test_exceptions_are_about_modules_that_exist() -> None:
    assert set(ELSEWHERE) | LONGER <= set(SOURCES)


@pytest.mark.parametrize("path", SOURCES)
def test_public_names_are_explained(path: str) -> None:
    if path in FAMILIES:
        return  # `read` and `write`, which family.py explains
    tree = TREES[path]
    assert ast.get_docstring(tree) or path.endswith("__init__.py"), "a word on what this module is"
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for node in defined:
        if not node.name.startswith("_") and "overload" not in map(ast.unparse, node.decorator_list):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_every_error_is_raised_somewhere() -> None:
    errors = {node.name for node in TREES["errors.py"].body if isinstance(node, ast.ClassDef)} - {"QkvError"}
    used = {
        found.id
        for path, tree in TREES.items()
        if path != "errors.py"
        for found in ast.walk(tree)
        if isinstance(found, ast.Name)
    }
    assert errors <= used
