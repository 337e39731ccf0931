"""qkv's server beside llama.cpp's and transformers': real lengths, chance arrivals, rising load, the same weights.

    python -m bench.serve [--servers qkv llama.cpp transformers] [--rates 0.25 0.5 1 2 4] [--seconds 60] [--burst 64]
                          [--scale 0.25] [--data recipes/data] [--json bench/results/DATE-serve.json]

Requests have the lengths of the Azure LLM inference trace 2023, times `--scale`, and pieces of WikiText-2 as prompts
(`--data`: the folder that has both); the same ones go to every server, as texts, greedy. Each load has others, so no
server can have seen a prompt before. At each rate they arrive as a Poisson process for `--seconds`, whatever became of
those before; what is open `--wait` seconds after the last one is given up (and counts with the time it has waited). At
last `--burst` requests arrive at once: that is saturation, and all may take as long as they need.

One server runs at a time, pinned to `--threads` processors, and is warmed up; the client runs on the same ones. Time to
first token (TTFT) is from when a request was due to its first text; between tokens is from one piece of text to the
next. tokens/s: of answers, over the time until the last one ended. Where a server ends an answer early (llama.cpp's in
Python can't be told not to, without slowing it), what it made is counted, and `short` says how often.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from bench.decode import plain_folder
from bench.load import Answer, Request, arrivals, offer, percentile, requests
from bench.machine import Others, describe, heading, keep, memory, pin, quiet
from bench.servers import KINDS, Server, Setup
from qkv.inputs.text import Tokenizer
from qkv.load.describe import describe as described

SATURATED = "all at once"
WANTED = {"llama.cpp": 1.5, "llama.cpp-native": 1.5, "transformers": 5.0}  # times their tokens/s at saturation
MOST_OPEN = 0.5  # of a rate's requests: a server that leaves more open gets no higher rate


def load_of(server: Server, wanted: list[Request], rate: float, wait: float) -> dict[str, Any]:
    """One load on a server, summed up."""
    bodies = [server.body(request.prompt, request.answer) for request in wanted]
    others, pids = Others(), [os.getpid(), server.process.pid]
    others.watch(pids)
    answers, took = asyncio.run(offer(server.port, bodies, arrivals(rate, len(bodies)), wait))
    return summary(wanted, answers, took) | {"others' cores": others.cores(pids), "memory": memory(server.process.pid)}


def summary(wanted: list[Request], answers: list[Answer], took: float) -> dict[str, Any]:
    """The figures of a load; times in ms."""
    end = min(answer.due for answer in answers) + took
    whole = [answer for answer in answers if answer.ended is not None and answer.error is None]
    failed = [answer for answer in answers if answer.error is not None]
    last = max((answer.pieces[-1] for answer in answers if answer.pieces), default=end)
    first = [1e3 * ((answer.pieces[0] if answer.pieces else end) - answer.due) for answer in answers]
    gaps = [1e3 * (b - a) for answer in answers for a, b in zip(answer.pieces, answer.pieces[1:], strict=False)]
    total = [1e3 * ((answer.ended or end) - answer.due) for answer in answers]
    tokens, seconds = sum(answer.tokens for answer in answers), last - min(answer.due for answer in answers)
    return {
        "requests": len(answers),
        "open": len(answers) - len(whole) - len(failed),
        "failed": len(failed),
        "error": failed[0].error if failed else None,
        "short": sum(a.tokens < request.answer for a, request in zip(answers, wanted, strict=True) if a in whole),
        "prompt tokens": sum(request.length for request in wanted),
        "tokens": tokens,
        "tokens/s": tokens / seconds,
        "first ms": {"p50": percentile(first, 0.5), "p99": percentile(first, 0.99)},
        "between ms": {"p50": percentile(gaps, 0.5), "p99": percentile(gaps, 0.99)},
        "whole ms": {"p50": percentile(total, 0.5), "p99": percentile(total, 0.99)},
        "texts": [answer.text for answer in answers],
        "prompts as counted here": all(a.prompt in (None, r.length) for a, r in zip(answers, wanted, strict=True)),
    }


def measure(name: str, setup: Setup, args: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    """All loads on one server."""
    shape = {"scale": args.scale, "context": args.context}
    server = Server(name, setup, args.port)
    print(f"{name}: answers after {server.started:.1f} s", file=sys.stderr)
    found: dict[str, Any] = {"started s": server.started, "loads": {}}
    try:
        warm = requests(args.data, tokenizer, 4, **shape, seed=args.seed)
        answers, _ = asyncio.run(offer(args.port, [server.body(r.prompt, 16) for r in warm], [0.0] * 4, args.patience))
        broken = [answer.error for answer in answers if answer.error or not answer.ended]
        if broken:
            raise RuntimeError(f"its first answers fail: {broken[0]}\n{server.printed()}")
        for i, rate in enumerate(args.rates, 1):
            count = max(4, round(rate * args.seconds))
            wanted = requests(args.data, tokenizer, count, **shape, seed=args.seed + i)
            now = found["loads"][f"{rate:g}/s"] = load_of(server, wanted, rate, args.wait)
            print(f"{name} at {rate:g}/s: {line(now)}", file=sys.stderr)
            if now["open"]:
                server.stop()  # it is still at work on what nobody waits for any more
                server = Server(name, setup, args.port)
            if now["open"] > MOST_OPEN * now["requests"]:
                break
        wanted = requests(args.data, tokenizer, args.burst, **shape, seed=args.seed + 1000)
        now = found["loads"][SATURATED] = load_of(server, wanted, float("inf"), args.patience)
        print(f"{name}, {SATURATED}: {line(now)}", file=sys.stderr)
    finally:
        server.stop()
    return found


def line(load: dict[str, Any]) -> str:
    """A load in words."""
    times = "  ".join(
        f"{what} {load[key]['p50']:.0f} {load[key]['p99']:.0f}"
        for what, key in (("first", "first ms"), ("between", "between ms"))
    )
    odd = "".join(f"  {load[key]} {key}" for key in ("open", "failed", "short") if load[key])
    return f"{load['tokens/s']:.1f} tokens/s  {times} ms (p50 p99){odd}" + (
        f"\n  {load['error']}" if load["error"] else ""
    )


def show(result: dict[str, Any]) -> None:
    """The table, and what the comparison is about at its end."""
    print(heading(result))
    print(f"{result['model']}, lengths × {result['scale']:g}, {result['burst']} requests at once; ms are p50 / p99")
    head = f"{'server':17} {'load':>11} {'requests':>8} {'open':>5} {'failed':>6} {'short':>5} {'tokens/s':>8}"
    print(f"{head} {'first ms':>17} {'between ms':>15}")
    for name, found in result["servers"].items():
        if "left out" in found:
            print(f"{name:17} left out: {found['left out']}")
        for rate, of in found.get("loads", {}).items():
            counts = f"{of['requests']:8} {of['open']:5} {of['failed']:6} {of['short']:5} {of['tokens/s']:8.1f}"
            first, between = (f"{of[key]['p50']:.0f} / {of[key]['p99']:.0f}" for key in ("first ms", "between ms"))
            print(f"{name:17} {rate:>11} {counts} {first:>17} {between:>15}")
    for text in ratios(result["servers"]):
        print(text)


def ratios(servers: dict[str, Any]) -> list[str]:
    """At saturation, ours by each other's: what was wanted and what is."""
    at = {name: of["loads"][SATURATED] for name, of in servers.items() if SATURATED in of.get("loads", {})}
    ours = at.pop("qkv", None)
    if ours is None:
        return []
    found = []
    for name, of in at.items():
        rate, first = ours["tokens/s"] / of["tokens/s"], ours["first ms"]["p99"] / of["first ms"]["p99"]
        same = sum(a == b for a, b in zip(ours["texts"], of["texts"], strict=True))
        found.append(
            f"at saturation, qkv by {name}: {rate:.2f}× the tokens/s (wanted ≥ {WANTED[name]}), {first:.2f}× the p99 "
            f"time to first token (wanted ≤ 1); {same} of {of['requests']} texts are the same"
        )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a reference that resolves to a GGUF file")
    parser.add_argument("--servers", nargs="+", choices=KINDS, default=["qkv", "llama.cpp", "transformers"])
    parser.add_argument("--llama-server", help="the program of llama.cpp-native, where it isn't on PATH")
    parser.add_argument("--data", type=Path, default=Path("recipes/data"), help="has the trace and the texts")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.25, 0.5, 1, 2, 4], help="requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals at each rate")
    parser.add_argument("--burst", type=int, default=64, help="requests at once, at last")
    parser.add_argument("--wait", type=float, default=60, help="seconds after a rate's last arrival")
    parser.add_argument("--patience", type=float, default=1800, help="seconds for the requests at once")
    parser.add_argument("--scale", type=float, default=0.25, help="of the trace's lengths")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--cache", type=int, default=16384, help="tokens, where a server has such a setting")
    parser.add_argument("--slots", type=int, default=32, help="sequences at once, where a server has such a setting")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8391)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the server too
    pin(args.threads)
    result: dict[str, Any] = {"machine": describe(args.threads), "load": quiet()}
    source = described(args.model, config_only=False, progress=True)
    if source.gguf is None:
        raise SystemExit(f"{args.model} is not a GGUF file, which llama.cpp needs")
    tokenizer = Tokenizer.from_gguf(source.gguf.metadata)
    said = ("scale", "context", "cache", "slots", "seconds", "burst", "seed")
    result |= {"model": source.gguf.path.name, **{key: getattr(args, key) for key in said}, "servers": {}}
    engines = ["transformers-float32"] if any(KINDS[name].plain for name in args.servers) else []
    with plain_folder(args.model, engines) as plain:
        sizes = {"threads": args.threads, "context": args.context, "cache": args.cache, "slots": args.slots}
        setup = Setup(args.model, str(source.gguf.path), plain, llama_server=args.llama_server, **sizes)
        for name in args.servers:
            try:
                result["servers"][name] = measure(name, setup, args, tokenizer)
            except RuntimeError as error:
                print(f"warning: {name} is left out: {error}", file=sys.stderr)
                result["servers"][name] = {"left out": str(error)}
    show(result)
    for found in result["servers"].values():
        for load in found.get("loads", {}).values():
            del load["texts"]
    keep(result, args.json)


if __name__ == "__main__":
    main()
