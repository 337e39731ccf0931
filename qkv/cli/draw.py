"""Predictions as a person sees them on a terminal: bars for scores, colours for spans. Without colours it reads too."""

import re
import sys
from typing import Any

from rich.table import Table
from rich.text import Text

from qkv.cli.answer import CONTROLS
from qkv.cli.console import out
from qkv.tasks.result import Answer, Answered, Classification, Filled, Tagged

_BAR = 24  # characters
_ROWS = 10  # of labels, unless more are asked for
_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def draw(result: Any, top: int | None, context: str | None) -> None:
    """Print one result. `top`: rows of labels; `context`: what a question's answers stand in."""
    match result:
        case Classification():
            _labels(result, top or _ROWS)
        case Tagged():
            _spans(result)
        case Answered():
            for one in result.answers:
                _answer(one, context or "")
        case Filled():
            _fillings(result)


def _labels(result: Classification, rows: int) -> None:
    table = _table()
    for label, score in [*result.scores.items()][:rows]:
        bar = Text("") if result.problem == "regression" else _bar(score)
        style = "bold" if label in result.labels else ""
        table.add_row(Text(_clean(label), style), bar, f"{score:.4f}")
    out().print(table)
    if len(result.scores) > rows:
        out().print(Text(f"… and {len(result.scores) - rows} labels more; --top {len(result.scores)} shows all", "dim"))


def _spans(result: Tagged) -> None:
    colours = {label: _COLOURS[i % len(_COLOURS)] for i, label in enumerate(sorted({s.label for s in result.spans}))}
    shown, at = Text(), 0
    for span in result.spans:
        shown.append(_clean(result.text[at : span.start]))
        shown.append(f"[{_clean(span.text)}: {_clean(span.label)}]", colours[span.label])
        at = span.end
    out().print(shown.append(_clean(result.text[at:])), soft_wrap=True)
    table = _table()
    for span in result.spans:
        table.add_row(
            Text(_clean(span.label), colours[span.label]),
            Text(_clean(span.text)),
            f"{span.score:.4f}",
            Text(f"{span.start}–{span.end}", "dim"),
        )
    if result.spans:
        out().print(table)


def _answer(one: Answer, context: str) -> None:
    """The answer and its score, then the sentence that it is in."""
    head = Text(_clean(one.text) or "no answer", "bold").append(f"  {one.score:.4f}", "not bold")
    if not one.text:
        out().print(head)
        return
    out().print(head.append(f"  {one.start}–{one.end}", "dim not bold"), soft_wrap=True)
    start, end = sentence(context, one.start, one.end)
    shown = Text("  ").append(_clean(context[start : one.start]))
    shown.append(_clean(one.text), "bold green").append(_clean(context[one.end : end]))
    out().print(shown, soft_wrap=True)


def sentence(text: str, start: int, end: int) -> tuple[int, int]:
    """The sentences around characters start..end, roughly: to the next full stop, question mark or line's end."""
    first = max((found.end() for found in _SENTENCE_END.finditer(text, 0, start)), default=0)
    found = _SENTENCE_END.search(text, end)
    return first, found.start() if found else len(text)


def _fillings(result: Filled) -> None:
    for i, fillings in enumerate(result.masks, 1):
        if len(result.masks) > 1:
            out().print(Text(f"mask {i}", "dim"))
        table = _table()
        for one in fillings:
            table.add_row(
                Text(_clean(one.text), "bold"), _bar(one.score), f"{one.score:.4f}", Text(_clean(one.filled), "dim")
            )
        out().print(table)


def _table() -> Table:
    return Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))


def _bar(share: float) -> Text:
    full = round(share * _BAR)
    return Text("━" * full, "cyan").append("─" * (_BAR - full), "dim")


def _clean(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return text.translate(CONTROLS) if sys.stdout.isatty() else text
