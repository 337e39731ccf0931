"""What a prediction looks like, without colours."""

import pytest

from qkv.cli.draw import draw, sentence
from qkv.tasks.result import Answer, Answered, Classification, Filled, Filling, Span, Tagged


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def shown(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    draw(*args)  # type: ignore[arg-type]
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_labels(capsys: pytest.CaptureFixture[str]) -> None:
    result = Classification("good", 0.75, {"good": 0.75, "bad [x]": 0.25})
    bars = ["━" * 18 + "─" * 6, "━" * 6 + "─" * 18]
    assert shown(capsys, result, None, None) == [f"good     {bars[0]}  0.7500", f"bad [x]  {bars[1]}  0.2500"]
    assert shown(capsys, Classification("stars", -1.5, {"stars": -1.5}, "regression"), None, None) == [
        "stars    -1.5000"
    ]
    many = Classification("0", 0.05, {str(i): 0.05 for i in range(20)})
    assert shown(capsys, many, None, None)[10:] == ["… and 10 labels more; --top 20 shows all"]


def test_spans(capsys: pytest.CaptureFixture[str]) -> None:
    spans = (Span("PER", 0, 4, "Anna", 0.5), Span("LOC", 8, 12, "[Ur]", 0.25))
    assert shown(capsys, Tagged("Anna in [Ur].", spans), None, None) == [
        "[Anna: PER] in [[Ur]: LOC].",
        "PER  Anna  0.5000  0–4",
        "LOC  [Ur]  0.2500  8–12",
    ]
    assert shown(capsys, Tagged("Nothing.", ()), None, None) == ["Nothing."]


def test_answers(capsys: pytest.CaptureFixture[str]) -> None:
    context = "It rains. Anna is in Ur. She likes it."
    result = Answered("Where?", (Answer("Ur", 21, 23, 0.5), Answer("", 0, 0, 0.25)))
    assert shown(capsys, result, None, context) == ["Ur  0.5000  21–23", "  Anna is in Ur.", "no answer  0.2500"]


def test_fillings(capsys: pytest.CaptureFixture[str]) -> None:
    one = (Filling("b", 1, 0.5, "a b"),)
    row = "b  " + "━" * 12 + "─" * 12 + "  0.5000  a b"
    assert shown(capsys, Filled("a [MASK]", (one,)), None, None) == [row]
    assert shown(capsys, Filled("[MASK] [MASK]", (one, one)), None, None) == ["mask 1", row, "mask 2", row]


def test_a_sentence_ends_where_one_does() -> None:
    text = "One. Two words? Three\nfour 3.5 five! Six"
    found = {text[slice(*sentence(text, at, at + 1))] for at in range(len(text)) if text[at].isalnum()}
    assert found == {"One.", "Two words?", "Three", "four 3.5 five!", "Six"}
    assert text[slice(*sentence(text, 0, len(text)))] == text
