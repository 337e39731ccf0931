"""What bench.decode found, as lines to read: a table, the promises with yes or no, and the README's piece."""

import statistics
from collections.abc import Iterator
from typing import Any

from bench.machine import heading

ROWS = ("prefill", "decode")
DISTURBED = 0.1  # cores that others took


def show(result: dict[str, Any]) -> None:
    """Everything, on standard output."""
    print(heading(result))
    if "read GB/s" in result:
        others = result["others' cores"]
        said = f"; others took {others['median']:.2f} cores (most: {others['max']:.2f})" if others else ""
        print(f"{result['model']}: {result['bytes'] / 1e6:.1f} MB; read at best {result['read GB/s']:.1f} GB/s{said}")
    for line in _lines(result):
        print(line)
    if (result.get("others' cores") or {"median": 0})["median"] > DISTURBED:
        print("warning: others used the cores meanwhile; the lines below say nothing until they don't")
    for line, held in promises(result):
        print(f"{held:12} {line}")


def _lines(result: dict[str, Any]) -> Iterator[str]:
    for case, engines in result.get("rates", {}).items():
        for engine, rates in engines.items():
            said = [f"{kind} {_rate(rates[kind])}" for kind in ROWS if kind in rates]
            if "decode" in rates:
                gbs = gb_per_second(result, case, engine)
                said.append(f"{gbs:5.1f} GB/s = {gbs / result['read GB/s']:4.0%}")
                differs = result["differ"][case][engine]
                said.append("same tokens" if differs is None else f"not {result['judge']}'s tokens from {differs}")
            yield f"{case:7} {engine:22} " + "   ".join(said)
    for engine, of in result.get("engines", {}).items():
        if "memory" in of:
            m = of["memory"]
            yield f"memory  {engine:22} {m['resident']:6.0f} MB, of them its own {m['own']:.0f}; peak {m['peak']:.0f}"
    for name, of in result.get("cold", {}).items():
        yield (
            f"cold    {name:22} first byte {of['first']['median']:.2f} s (best {of['first']['min']:.2f}), beyond torch "
            f"{of['beyond']['median']:+.2f} s; end {of['whole']['median']:.2f} s; {of['peak']['median']:.0f} MB at most"
        )


def _rate(values: list[float]) -> str:
    return f"{statistics.median(values):7.1f} tok/s (best {max(values):.1f})"


def median(result: dict[str, Any], case: str, engine: str, kind: str) -> float:
    """The median rate; KeyError: it wasn't measured."""
    return float(statistics.median(result["rates"][case][engine][kind]))


def gb_per_second(result: dict[str, Any], case: str, engine: str) -> float:
    """What an engine's decode steps read in a second."""
    batch = int(case.split("×")[0])
    return median(result, case, engine, "decode") / batch * float(result["bytes read"][case][engine]) / 1e9


def ratio(result: dict[str, Any], case: str, kind: str, to: str, exact: bool = False) -> float:
    """qkv by the best engine whose name begins with `to`: the median of the rounds' ratios. KeyError: not measured."""
    engines = result["rates"][case]
    names = [name for name in engines if (name == to if exact else name.startswith(to)) and kind in engines[name]]
    if not names:
        raise KeyError(to)
    best = max(names, key=lambda name: median(result, case, name, kind))
    pairs = zip(engines["qkv"][kind], engines[best][kind], strict=True)
    return float(statistics.median(ours / theirs for ours, theirs in pairs))


def _own_batch(result: dict[str, Any]) -> float:
    rates = result["rates"]
    pairs = zip(rates["8×16"]["qkv"]["decode"], rates["1×16"]["qkv"]["decode"], strict=True)
    return float(statistics.median(many / one for many, one in pairs))


def promises(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each line of what must hold, and yes, no or that it was not measured."""
    share = "of the measured read bandwidth in decode at 16, at least 0.45"
    checks: list[tuple[str, Any, float]] = [
        ("decode at 16 by llama.cpp's, at least 2", lambda: ratio(result, "1×16", "decode", "llama.cpp"), 2),
        ("decode at 512 by llama.cpp's, at least 2", lambda: ratio(result, "1×512", "decode", "llama.cpp"), 2),
        ("decode at 16 by transformers' better, at least 8", lambda: ratio(result, "1×16", "decode", "transform"), 8),
        ("decode at 512 by transformers' better, at least 8", lambda: ratio(result, "1×512", "decode", "transform"), 8),
        ("prefill of 512 by llama.cpp's, at least 3", lambda: ratio(result, "1×512", "prefill", "llama.cpp"), 3),
        (
            "prefill of 512 by transformers' bfloat16, at least 1",
            lambda: ratio(result, "1×512", "prefill", "transformers-bfloat16", exact=True),
            1,
        ),
        (share, lambda: gb_per_second(result, "1×16", "qkv") / result["read GB/s"], 0.45),
        ("batch 8 by our own batch 1, at least 3", lambda: _own_batch(result), 3),
        ("batch 8 by transformers' better, at least 5", lambda: ratio(result, "8×16", "decode", "transformers"), 5),
        ("s to the first token beyond import torch, at most 1", lambda: result["cold"]["qkv"]["beyond"]["median"], -1),
        ("MB in memory at most, under 450", lambda: result["cold"]["qkv"]["peak"]["median"], -450),
    ]
    for line, value, bound in checks:
        try:
            found = float(value())
        except KeyError:
            yield line, "not measured"
            continue
        held = found >= bound if bound > 0 else found <= -bound
        yield f"{found:7.2f} {line}", "yes" if held else "NO"


def markdown(result: dict[str, Any]) -> str:
    """The README's table: a row an engine, a column a case, medians."""
    machine, rates = result["machine"], result.get("rates", {})
    columns = [
        (case, kind) for kind in ROWS for case, engines in rates.items() if any(kind in e for e in engines.values())
    ]
    names = [name for name in result.get("engines", {}) if any(name in engines for engines in rates.values())]
    head = ["", *(f"{kind} {case}" for case, kind in columns), "memory"]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for name in names:
        cells = [rates[case].get(name, {}).get(kind) for case, kind in columns]
        memory = result["engines"][name]["memory"]["resident"]
        lines.append(_row([name, *(f"{statistics.median(c):.0f}" if c else "" for c in cells), f"{memory:.0f} MB"]))
    about = (
        f"{result['model']}, {machine['date']}, {machine['cpu']}, {machine['threads']} threads; tokens a second "
        "(sequences × context), medians of interleaved rounds; memory after a short answer."
    )
    return "\n".join([about, "", *lines, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
