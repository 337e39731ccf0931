"""A run on standard error: a bar on a terminal, plain lines now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qkv.load.progress import megabytes
from qkv.train import log
from qkv.train.log import Line

if TYPE_CHECKING:
    from rich.progress import Progress

    from qkv.train.watch import Step

LINE_EVERY = 10.0  # seconds between plain lines
REFRESH = 0.2  # seconds between drawings of the bar
SHOWN = 300  # characters of a sample's field on the screen; the log has all of it


class Screen:
    """A bar where standard error is a terminal, elsewhere a plain line every ten seconds."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task: Any = None
        self._began: tuple[float, float] | None = None  # when the first step was over, and its share
        self._drawn = 0.0

    def moved(self, step: "Step", rates: Mapping[str, Any]) -> None:
        """A step is over."""
        now, share = time.monotonic(), step.share
        if share is None and self.total:
            share = step.step / self.total
        self._began = self._began or (now, share or 0.0)
        every = LINE_EVERY if self._bar is None else REFRESH
        if now - self._drawn < every and share != 1.0:
            return
        self._drawn = now
        text = described(step, self.total, rates, log.memory(), self._left(now, share))
        if self._bar is None:
            tell(text)
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        self._bar.update(self._task, completed=share or 0.0, description=text, refresh=True)

    def record(self, line: Line) -> None:
        """Evaluations, notes and the end in words; the rest is the bar's."""
        for text in told(line):
            if self._bar is None or self._task is None:
                tell(text)
            else:
                self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None and self._task is not None:
            self._bar.stop()

    def _left(self, now: float, share: float | None) -> float | None:
        """Seconds to the end, if they all go by as those since the first step."""
        assert self._began is not None
        done = (share or 0.0) - self._began[1]
        return (now - self._began[0]) * (1 - (share or 0.0)) / done if done > 0 else None


def described(step: "Step", total: int | None, rates: Mapping[str, Any], memory: int, left: float | None) -> str:
    """A step in one line: loss, tok/s, MFU, memory, time left (each where it is known)."""
    parts = [f"step {step.step}{f'/{total}' if total else ''}", f"loss {step.loss:.4f}", f"lr {step.lr:.2e}"]
    if "tokens_per_second" in rates:
        parts.append(f"{rates['tokens_per_second']:,.0f} tok/s")
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.1%}")
    parts.append(megabytes(memory))
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def told(line: Line) -> Iterator[str]:
    """A line of the log in words, for those that are about something else than a step."""
    if line["kind"] == "evaluation":
        values = ", ".join(f"{name} {value:.4g}" for name, value in line["values"].items())
        yield f"step {line['step']}: {values} ({duration(line['seconds'])})"
        for sample in line["samples"]:
            yield f"  {_sample(log.plain(sample))}"
    elif line["kind"] == "note":
        yield line["text"]
    elif line["kind"] == "end":
        yield f"{line['why']} after step {line['step']}"


def duration(seconds: float) -> str:
    """1.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tell(text: str) -> None:
    """A plain line on standard error. (If even that is closed, the run goes on.)"""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _sample(value: Any) -> str:
    fields = value.items() if isinstance(value, dict) else [("", value)]
    return "  ".join(f"{name}: {_short(str(one))}" if name else _short(str(one)) for name, one in fields)


def _short(text: str) -> str:
    """Control characters (a terminal would obey them) as escapes; one line, and not too long."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def _bar() -> "Progress":
    """A bar without a thread of its own: workers that are forked off must not find its lock held."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    return progress.Progress(
        progress.BarColumn(bar_width=20),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(stderr=True, highlight=False),
        auto_refresh=False,
    )
