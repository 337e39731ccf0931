"""The page of a run: one HTML file, index.html, that needs nothing else, on paper white or dark, on a phone too."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from qkv.train import card, curve
from qkv.train.card import About
from qkv.train.log import History
from qkv.train.recipe import Recipe
from qkv.train.recipe_file import resolved
from qkv.train.screen import duration
from qkv.write import write_text

NAME = "index.html"
SMALL = (340, 150)  # width and height of the lesser curves


def write(folder: Path, run: Recipe, about: About, history: History) -> Path:
    """index.html in the run's folder. OSError: it can't be written."""
    path = folder / NAME
    write_text(path, page(run, about, history))
    return path


def page(run: Recipe, about: About, history: History) -> str:
    """The whole page. Every text of the run is escaped."""
    sections = [
        _head(run, about, history),
        _section("Results", _results(about)),
        _section(
            "Loss",
            curve.svg("loss over steps", curve.losses(history), may_log=True) or "<p>No loss was logged yet.</p>",
        ),
        f'<div class="small">{"".join(_others(history))}</div>',
        _section("What it says", "".join(_predictions(history))),
        _section("How", _rows(card.settings(run, history))),
        _section("Recipe", f"<pre>{escape(resolved(run))}</pre>"),
        _section("Notes", _notes(history)),
    ]
    return _PAGE.format(title=escape(run.name), style=_STYLE, script=_SCRIPT, body="\n".join(filter(None, sections)))


def _head(run: Recipe, about: About, history: History) -> str:
    base = f"fine-tuned from {escape(run.model.origin)}" if run.model.origin else "trained from scratch"
    numbers = f"{card.count(about.parameters)} parameters"
    if about.trained != about.parameters:
        numbers += f" ({card.count(about.trained)} trained)"
    return (
        f"<h1>{escape(run.name)}</h1>\n<p>{numbers}: {escape(card.shape(about.spec))}; {base}. {_how_far(history)}</p>"
    )


def _how_far(history: History) -> str:
    if not history.steps:
        return "No step was taken yet."
    step = f"{history.steps[-1]['step']:,}"
    said = f"{step} steps, {history.tokens:,} tokens in {duration(history.seconds)} of training"
    why = escape(str(history.ends[-1]["why"])) if history.ends else "the end is not in the log"
    return f"{said}; {why}."


def _results(about: About) -> str:
    if not about.finals:
        return ""
    names = dict.fromkeys(name for values in about.finals.values() for name in values)
    head = "".join(f"<th>{escape(split)}{_counted(about, split)}</th>" for split in about.finals)
    rows = "".join(f"<tr><th>{escape(name)}</th>{_values(about.finals, name)}</tr>" for name in names)
    kept = f"<p>Of the weights of step {about.best_step:,}, the best.</p>" if about.best_step is not None else ""
    return f"<table><tr><th></th>{head}</tr>{rows}</table>{kept}"


def _counted(about: About, split: str) -> str:
    return f" <small>{about.records[split]:,} records</small>" if split in about.records else ""


def _values(finals: Mapping[str, Mapping[str, float]], name: str) -> str:
    return "".join(f"<td>{values[name]:.4f}</td>" if name in values else "<td></td>" for values in finals.values())


def _others(history: History) -> Iterator[str]:
    """Small curves: of metrics beside the loss, and of how it went."""
    metrics = dict.fromkeys(name for line in history.evaluations for name in line["values"] if name != "loss")
    for name in metrics:
        yield curve.svg(name, [curve.of_evaluations(history, name, "valid")], *SMALL)
    for key, title in (
        ("lr", "learning rate"),
        ("tokens_per_second", "tokens a second"),
        ("grad_norm", "gradient norm"),
    ):
        yield curve.svg(title, [curve.of_steps(history, key, "train")], *SMALL)


def _predictions(history: History) -> Iterator[str]:
    """The last evaluation's samples, and the earlier ones' folded."""
    with_some = [line for line in history.evaluations if line["samples"]]
    for line in reversed(with_some):
        opened = " open" if line is with_some[-1] else ""
        values = ", ".join(f"{name} {_short(value)}" for name, value in line["values"].items())
        samples = "".join(f"<dl>{''.join(_fields(sample))}</dl>" for sample in line["samples"])
        yield f"<details{opened}><summary>step {line['step']:,}: {escape(values)}</summary>{samples}</details>"


def _short(value: Any) -> str:
    return curve.short(value) if isinstance(value, int | float) else str(value)


def _fields(sample: Any) -> Iterator[str]:
    pairs = sample.items() if isinstance(sample, dict) else [("", sample)]
    for name, value in pairs:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"<dt>{escape(str(name))}</dt><dd>{escape(text)}</dd>"


def _notes(history: History) -> str:
    texts = [f"step {line['step']:,}: {escape(str(line['text']))}" for line in history.notes]
    if history.torn:
        texts.append(f"{history.torn} lines of the log were left half written by a crash, and are not shown")
    return f"<ul>{''.join(f'<li>{text}</li>' for text in texts)}</ul>" if texts else ""


def _rows(pairs: Iterator[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in pairs)
    return f'<table class="wide">{rows}</table>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { --ink: #1b1f24; --dim: #5b6572; --line: #dde2e8; --paper: #fff; --well: #f4f6f8; --c0: #1f6feb; --c1: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ed; --dim: #98a2b0; --line: #343b45; --paper: #15181c; --well: #1e2329; --c0: #6ea8fe; --c1: #ff9b63;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .5rem; font-size: 1.15rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 500; color: var(--dim); }
td { overflow-wrap: anywhere; }
.wide th { white-space: nowrap; }
pre, details { background: var(--well); border-radius: 6px; padding: .75rem 1rem; }
pre { overflow-x: auto; font-size: .85rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
dl { margin: .75rem 0 0; padding-top: .6rem; border-top: 1px solid var(--line); }
dt { color: var(--dim); font-size: .8rem; }
dd { margin: 0 0 .35rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; margin-top: 1rem; }
.chart { margin: 0; }
.chart svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .9rem; }
figcaption b { font-weight: 500; }
output { flex-basis: 100%; min-height: 1.5em; color: var(--dim); font-variant-numeric: tabular-nums; }
.chart text { fill: var(--dim); font-size: 13px; }
@media (max-width: 40rem) { section > .chart text { font-size: 21px; } }
.grid { stroke: var(--line); }
.cursor { stroke: var(--dim); stroke-dasharray: 3 3; }
.cursor[hidden] { display: none; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.k0 { stroke: var(--c0); } circle.k0 { fill: var(--c0); } .key.k0::before { background: var(--c0); }
polyline.k1 { stroke: var(--c1); } circle.k1 { fill: var(--c1); } .key.k1::before { background: var(--c1); }
.key::before { content: ""; display: inline-block; width: .9em; height: .25em; margin-right: .35em; }
.key::before { vertical-align: middle; }
"""

_SCRIPT = """
for (const figure of document.querySelectorAll(".chart")) {
  const series = JSON.parse(figure.dataset.series), svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor"), output = figure.querySelector("output");
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a);
  let at = null;
  const show = x => {
    at = nearest(series.flatMap(one => one.points), x);
    cursor.setAttribute("x1", at[2]); cursor.setAttribute("x2", at[2]); cursor.removeAttribute("hidden");
    const told = series.map(one => one.name + " " + Number(nearest(one.points, at[2])[1].toPrecision(4)));
    output.textContent = "step " + Math.round(at[0]).toLocaleString("en") + ": " + told.join(", ");
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    show((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("hidden", ""); output.textContent = ""; });
  figure.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], points = series[0].points;
    if (!way) return;
    const i = at ? points.indexOf(nearest(points, at[2])) + way : 0;
    show(points[Math.min(Math.max(i, 0), points.length - 1)][2]);
  });
}
"""
