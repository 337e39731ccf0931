"""The pages are programs. Each page's python blocks run in order in one namespace, in an empty folder.

- What a block prints stands in the `text` block that follows it, character for character; a block that prints and has
  no such block after it is as wrong as a block that prints something else.
- A block marked `python network` needs a download: it is compiled and not run.
- Every picture that a page shows is drawn by its code. `python tests/test_docs.py` runs the pages and puts what they
  draw in docs/images. Only what a browser shows, `serve-*.png`, is photographed by hand.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot

import qkv.nn.stack  # noqa: F401  (every part is registered before the first page adds its own)
from qkv.nn.parts import MODULES
from qkv.spec import Part

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted(ROOT.glob("README.md"))
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
PHOTOGRAPH = "serve-"
LINK = re.compile(r"(?:\]\(|src=\")(?!\w+:|#)([^)#\s\"]+)")


@dataclass
class Block:
    """A fenced block of a page. `line`: where its body begins, from 1."""

    info: str
    body: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Every fenced block. A fence that would be overlooked (indented, never closed) fails."""
    text = page.read_text(encoding="utf-8")
    found = [Block(m["info"].strip(), m["body"], text[: m.start("body")].count("\n") + 1) for m in FENCE.finditer(text)]
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), f"{page.name}: an indented or open fence"
    return found


def linked(page: Path) -> list[str]:
    """The files that a page's prose links to or shows."""
    return LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))


def run(page: Path) -> None:
    """Run a page in the current folder. AssertionError: the page's own, or an output that is not what it shows."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if not block.info.startswith("python"):
            continue
        assert block.info in ("python", "python network"), f"{page.name}:{block.line}: what is {block.info!r}?"
        # Line numbers of a traceback are the page's own, so that it shows the page's lines.
        code = compile("\n" * (block.line - 1) + block.body, str(page), "exec")
        if block.info == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, scope)
            shown = after.body if after is not None and after.info == "text" else ""
            assert printed.getvalue() == shown, f"{page.name}:{block.line}: the output is not what the page shows"


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder for a page. What it sets in torch is set back, and its own parts are forgotten."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    threads, kinds, modules = torch.get_num_threads(), dict(Part.kinds), dict(MODULES)
    with torch.random.fork_rng(), torch.enable_grad():
        yield tmp_path
    torch.set_num_threads(threads)
    pyplot.close("all")
    for registry, before in ((Part.kinds, kinds), (MODULES, modules)):
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, empty_folder: Path) -> None:
    run(page)
    links = linked(page)
    assert [link for link in links if not (page.parent / link).exists()] == []
    shown = {link.removeprefix("images/") for link in links if link.startswith("images/")}
    drawn = {picture.name for picture in empty_folder.glob("*.png")}
    assert {name for name in shown if not name.startswith(PHOTOGRAPH)} == drawn


def test_pictures_are_small_and_shown() -> None:
    shown = {Path(link).name for page in PAGES for link in linked(page)}
    for picture in IMAGES.iterdir():
        assert picture.name in shown
        assert picture.stat().st_size < 60_000, picture.name


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "bad.md:2: the output"),
        ("```python\nprint(1)\n```\n", "bad.md:2: the output"),
        ("```python\n1\n```\n```text\n1\n```\n", "bad.md:2: the output"),
        ("words\n\n```python\nassert 1 == 2, 'not so'\n```\n", "not so"),
        ("```python nework\n1\n```\n", "nework"),
        ("- a list\n  ```python\n  1\n  ```\n", "indented"),
    ],
)
def test_a_wrong_page_fails(text: str, error: str, empty_folder: Path) -> None:
    page = empty_folder / "bad.md"
    page.write_text(text)
    with pytest.raises(AssertionError, match=error):
        run(page)


def test_a_network_block_is_compiled_and_not_run(empty_folder: Path) -> None:
    page = empty_folder / "page.md"
    page.write_text("```python network\n1 / 0\n```\n")
    run(page)
    page.write_text("```python network\n1 /\n```\n")
    with pytest.raises(SyntaxError):
        run(page)


def draw() -> None:
    """Put what the pages draw in docs/images."""
    matplotlib.use("Agg")
    for page in sorted((ROOT / "docs").glob("*.md")):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            run(page)
            for picture in Path(folder).glob("*.png"):
                shutil.copy(picture, IMAGES)
                print(page.name, picture.name, picture.stat().st_size, "bytes")
            os.chdir(ROOT)


if __name__ == "__main__":
    draw()
