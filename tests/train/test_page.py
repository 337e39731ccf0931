"""The page of a run: self-contained, whole, and everything of the run escaped."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from qkv.train import log, page
from qkv.train.card import About
from qkv.train.log import History
from qkv.train.predictions import Shown
from qkv.train.watch import Step, Watch
from tests.tiny import tiny_spec
from tests.train.test_watch import Outcome, recipe

EVIL = '<script>alert("&")</script>'
VOID = {"meta", "link", "br", "img"}


class Reader(HTMLParser):
    """Tags in balance, text by the innermost tag, attributes of each tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


def about(**more: Any) -> About:
    finals = {"valid": {"loss": 1.25, "bleu": 31.5}, "test": {"bleu": 30.0}}
    return About(tiny_spec(), 12_345_678, 1_000_000, finals, {"test": 1000}, 20, **more)


def run(folder: Path, name: str = "tiny") -> tuple[Any, History]:
    made = recipe(log_every=1).model_copy(update={"name": name})
    watch = Watch(folder, made)
    for number in range(1, 31):
        watch.step(Step(number, 5 / number, 1.0, 1e-3, 100, 0.1, 1.0, number / 10))
        if number % 10 == 0:
            watch.evaluated(number, Outcome({"loss": 6 / number, "bleu": number}, [Shown("in " + name, "right", EVIL)]))
    watch.note(f"noted {name}")
    watch.close("finished")
    return made, log.read(folder)


def test_all_of_a_run_is_there(tmp_path: Path) -> None:
    made, history = run(tmp_path)
    path = page.write(tmp_path, made, about(), history)
    assert path == tmp_path / "index.html"
    found = Reader(path.read_text(encoding="utf-8"))
    assert found.of("title") == found.of("h1") == ["tiny"]
    (head,) = [text for text in found.of("p") if "parameters" in text]
    assert "12.3 M parameters (1.0 M trained): decoder, 2 blocks, width 16, 4 heads, vocabulary 31" in head
    assert "30 steps, 3,000 tokens in 3.0 s of training; finished." in head
    assert found.of("h2") == ["Results", "Loss", "What it says", "How", "Recipe", "Notes"]
    assert {"1.2500", "31.5000", "30.0000"} <= set(found.of("td"))
    assert "Of the weights of step 20, the best." in found.of("p")
    assert found.of("b") == [
        "loss over steps (logarithmic)",
        "bleu",
        "learning rate",
        "tokens a second",
        "gradient norm",
    ]
    assert found.of("summary")[0].startswith("step 30: loss 0.2, bleu 30")
    assert [name for _, name, _ in found.attributes].count("open") == 1  # the last evaluation's predictions
    assert len(found.of("summary")) == 3
    assert found.of("dt")[:3] == ["input", "expected", "predicted"]
    assert 'kind = "causal"' in "".join(found.of("pre"))
    assert "step 30: noted tiny" in found.of("li")


def test_texts_are_escaped(tmp_path: Path) -> None:
    made, history = run(tmp_path, EVIL)
    text = page.page(made, about(), history)
    assert EVIL not in text
    found = Reader(text)
    assert found.of("h1") == [EVIL]
    assert found.of("dd")[:3] == ["in " + EVIL, "right", EVIL]
    assert [tag for tag, _, _ in found.attributes if tag == "script"] == []
    assert len(found.of("script")) == 1


def test_it_needs_nothing_else(tmp_path: Path) -> None:
    made, history = run(tmp_path)
    text = page.page(made, about(), history)
    assert not [value for _, name, value in Reader(text).attributes if name in ("src", "href")]
    assert "@import" not in text
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    text = page.page(recipe(), About(tiny_spec(), 10, 10), History())
    found = Reader(text)
    assert found.of("h2") == ["Loss", "How", "Recipe"]
    assert any("No step was taken yet." in p for p in found.of("p"))


def test_a_crash_is_told(tmp_path: Path) -> None:
    made, history = run(tmp_path)
    history.ends.clear()
    history.torn = 2
    found = Reader(page.page(made, about(), history))
    assert any("the end is not in the log" in p for p in found.of("p"))
    assert any("2 lines of the log" in li for li in found.of("li"))
