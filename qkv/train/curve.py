"""Curves of a run: as inline SVG for its page, and the loss as a PNG."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qkv.train import log
from qkv.train.log import History
from qkv.write import renamed_when_whole

Point = tuple[float, float]
PNG = "curve.png"  # the loss over steps, in the run's folder
MOST = 400  # points of a curve; beyond, neighbours are averaged
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 26  # margins of a drawing
LOG_FROM = 5.0  # the largest value over the least from which a curve's axis is logarithmic


@dataclass(frozen=True)
class Series:
    """A named curve of (step, value)."""

    name: str
    points: Sequence[Point]


def of_steps(history: History, key: str, name: str) -> Series:
    """A number of the log's steps; where it isn't finite, or missing, there is no point."""
    return Series(name, _points([(line["step"], line.get(key)) for line in history.steps]))


def of_evaluations(history: History, metric: str, name: str) -> Series:
    """A metric of the evaluations."""
    return Series(name, _points([(line["step"], line["values"].get(metric)) for line in history.evaluations]))


def losses(history: History) -> list[Series]:
    """The training loss, and the validation loss where there is one."""
    both = of_steps(history, "loss", "train"), of_evaluations(history, "loss", "valid")
    return [one for one in both if one.points]


def thin(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """At most so many points: means over neighbours."""
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


# --- SVG ------------------------------------------------------------------------------------------------------------


def svg(title: str, series: Sequence[Series], width: int = 720, height: int = 300, may_log: bool = False) -> str:
    """A figure with axes, a curve for each series, and the values as data for a page's hover read-out; "" where there
    is nothing to draw. Its colours are the page's variables --c0, --c1, …, its texts are escaped."""
    thinned = [Series(one.name, thin(one.points)) for one in series if one.points]
    if not thinned:
        return ""
    x = _Axis([p[0] for one in thinned for p in one.points], LEFT, width - RIGHT, width // 110, False)
    y = _Axis([p[1] for one in thinned for p in one.points], height - BOTTOM, TOP, height // 40 + 1, may_log)
    keys = "".join(f'<span class="key k{i}">{html.escape(one.name)}</span>' for i, one in enumerate(thinned))
    data = [
        {"name": one.name, "points": [[*p, round(x(p[0]), 1), round(y(p[1]), 1)] for p in one.points]}
        for one in thinned
    ]
    caption = html.escape(title) + (" (logarithmic)" if y.log else "")
    return (
        f'<figure class="chart" tabindex="0" data-series="{html.escape(json.dumps(data))}">'
        f"<figcaption><b>{caption}</b>{keys}<output></output></figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{caption}">'
        + _grid(x, y, width, height)
        + "".join(_line(one, i, x, y) for i, one in enumerate(thinned))
        + f'<line class="cursor" y1="{TOP}" y2="{height - BOTTOM}" hidden></line>'
        + "</svg></figure>"
    )


class _Axis:
    """Values to places: a linear axis, or (if it may be, and the values span enough) a logarithmic one."""

    def __init__(self, values: Sequence[float], first: float, last: float, most: int, may_log: bool) -> None:
        low, high = min(values), max(values)
        self.log = may_log and low > 0 and high / low >= LOG_FROM
        if not self.log and high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
            low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
        self.low, self.high, self.first, self.last, self.most = low, high, first, last, most

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[float]:
        """A few round numbers on it, about `most`."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 8)):
                found = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high]
                if len(found) >= min(3, self.most):
                    break
            return found[:: math.ceil(len(found) / self.most)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / self.most))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= self.most)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _grid(x: _Axis, y: _Axis, width: int, height: int) -> str:
    parts = []
    for value in y.ticks():
        at = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{at}" y2="{at}"></line>')
        parts.append(f'<text x="{LEFT - 6}" y="{at}" dy=".35em" text-anchor="end">{short(value)}</text>')
    for value in x.ticks():
        parts.append(f'<text x="{x(value):.1f}" y="{height - 6}" text-anchor="middle">{short(value)}</text>')
    return "".join(parts)


def _line(series: Series, i: int, x: _Axis, y: _Axis) -> str:
    places = [(f"{x(a):.1f}", f"{y(b):.1f}") for a, b in series.points]
    few = places if len(places) <= 40 else []
    dots = "".join(f'<circle class="k{i}" cx="{a}" cy="{b}" r="2.5"></circle>' for a, b in few)
    return f'<polyline class="k{i}" points="{" ".join(map(",".join, places))}"></polyline>{dots}'


def short(value: float) -> str:
    """A number in a few characters: 1.2k, 0.0003, 3e-05."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


# --- PNG ------------------------------------------------------------------------------------------------------------


def png(history: History, path: Path, title: str) -> str | None:
    """The loss over steps as a picture. Why there is none, where there is none; OSError: it can't be written."""
    drawn = losses(history)
    if not drawn:
        return f"no {path.name}: the log has no loss yet"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"no {path.name}: it needs matplotlib (pip install 'qkv[plot]'); the page has the curve"
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for one in drawn:
        points = thin(one.points)
        marker = "o" if len(points) <= 40 else ""
        axes.plot([x for x, _ in points], [y for _, y in points], label=one.name, marker=marker, markersize=3)
    scale = _Axis([y for one in drawn for _, y in one.points], 0, 1, 8, True)
    if scale.log:
        axes.set_yscale("log")
        axes.set_yticks(scale.ticks(), labels=[short(tick) for tick in scale.ticks()])
        axes.minorticks_off()
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    with renamed_when_whole(path) as temporary:
        figure.savefig(temporary, format="png")
    return None


def _points(found: Sequence[tuple[float, object]]) -> list[Point]:
    pairs = [(x, log.number(y)) for x, y in found]
    return [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
