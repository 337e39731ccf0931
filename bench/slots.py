"""What paging is worth: the engine with pages of 16 tokens, and with a slot for the longest sequence, in equal memory.

    python -m bench.slots [--cache 64MiB] [--page 16] [--longest 1024] [--requests 48] [--scale 0.25]
                          [--data recipes/data] [--rounds 3] [--json bench/results/DATE-slots.json]

The same engine serves the same requests twice: with pages of `--page`, and with pages as large as the longest sequence
that is allowed, so that a page is a contiguous slot and admission means to have one free. All requests wait from the
beginning; their lengths are the Azure trace's times `--scale` (those beyond `--longest` are left out), their prompts
pieces of WikiText-2, answers greedy and as long as the trace says. No HTTP: one process, the engine's own thread.

waste: slots of used pages that hold no token, of all their slots, mean over the steps, as the engine counts it.
rows: answers that go on in a step. The rounds take turns, A B A B …; tokens/s (of answers) is the median.
"""

import argparse
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bench.load import Request, requests
from bench.machine import describe, heading, keep, pin, quiet
from qkv.model import Model, load
from qkv.serve.ask import Ask
from qkv.serve.engine import Engine
from qkv.serve.events import Ended, Event, Failed


def run(model: Model, wanted: list[Request], page: int, args: argparse.Namespace) -> dict[str, Any]:
    """All requests through an engine with such pages."""
    assert model.tokenizer is not None
    sizes = {"cache": args.cache, "page": page, "most_running": args.running, "most_waiting": len(wanted)}
    engine = Engine(model, name="bench", **sizes)
    engine.start()
    while not engine.ready:
        if not engine.alive:
            raise RuntimeError("the engine didn't start") from engine.failure
        time.sleep(0.01)
    over, left, failed = threading.Event(), len(wanted), list[str]()

    def deliver(event: Event) -> None:
        nonlocal left
        if isinstance(event, Failed):
            failed.append(str(event.error))
        if isinstance(event, Ended | Failed):
            left -= 1
            if not left:
                over.set()

    asks = [
        Ask(str(i), tuple(model.tokenizer.encode(one.prompt)), engine.settings(max_tokens=one.answer, ignore_eos=True))
        for i, one in enumerate(wanted)
    ]
    begin = time.perf_counter()
    for ask in asks:
        engine.submit(ask, deliver)
    over.wait()
    took, state = time.perf_counter() - begin, engine.state()
    engine.close()
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
    return {
        "pages": f"{state.pages} of {page}",
        "tokens/s": state.generated_tokens / took,
        "waste": state.mean_waste,
        "rows": state.generated_tokens / state.steps,
        "steps": state.steps,
        "preemptions": state.preemptions,
        "step": state.step,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", type=Path, default=Path("recipes/data"), help="has the trace and the texts")
    parser.add_argument("--cache", default="64MiB", help="tokens or bytes")
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--longest", type=int, default=1024, help="tokens of prompt and answer; the slot's size")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--scale", type=float, default=0.25, help="of the trace's lengths")
    parser.add_argument("--running", type=int, default=64, help="sequences at once at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = arguments()
    pin(args.threads)
    result: dict[str, Any] = {"machine": describe(args.threads), "load": quiet()}
    model = load(args.model)
    if model.tokenizer is None:
        raise SystemExit(f"{args.model} has no tokenizer")
    shape = {"scale": args.scale, "context": args.longest, "seed": args.seed}
    wanted = requests(args.data, model.tokenizer, args.requests, **shape)
    found: dict[str, list[dict[str, Any]]] = {"paged": [], "slots": []}
    for round_ in range(args.rounds):
        for name, page in (("paged", args.page), ("slots", args.longest)):
            found[name].append(run(model, wanted, page, args))
            print(f"round {round_ + 1}, {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    middle = {name: statistics.median(one["tokens/s"] for one in of) for name, of in found.items()}
    sizes = {"prompt tokens": sum(r.length for r in wanted), "answer tokens": sum(r.answer for r in wanted)}
    result |= {
        **shape,
        "cache": args.cache,
        "requests": len(wanted),
        **sizes,
        "rounds": found,
        "median tokens/s": middle,
    }
    print(heading(result))
    print(f"{args.cache} of cache, {len(wanted)} requests, {sizes}")
    for name, of in found.items():
        one = of[-1]
        print(
            f"{name:6} {one['pages']:>12}  {middle[name]:7.1f} tokens/s  {one['rows']:5.1f} rows  "
            f"waste {100 * one['waste']:.1f} %  {one['preemptions']} preemptions"
        )
    print(f"paged by slots: {middle['paged'] / middle['slots']:.2f}× the tokens/s (wanted 2×)")
    keep(result, args.json)


if __name__ == "__main__":
    main()
