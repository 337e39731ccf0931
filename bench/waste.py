"""What paging saves: the scheduler on the lengths of real requests, in pages and in slots for the longest of them.

    python -m bench.waste TRACE.csv.gz … [--tokens 65536] [--size 16] [--longest N] [--requests N] [--json FILE]

Each TRACE has a request a row, with its ContextTokens and GeneratedTokens, as the Azure LLM inference trace 2023 does
(github.com/Azure/AzurePublicDataset, CC BY 4.0). All requests wait from the beginning, no two have a beginning in
common, and there is no model: what is measured is memory, not time. The same scheduler fills the same `--tokens` of
cache twice: with pages of `--size`, and with one contiguous slot a sequence, which is a page for the `--longest` (the
trace's longest request, or the model's context; longer ones are left out).

waste       slots of used memory that hold no token, of all its slots, over all steps
rows        sequences a step, which is what memory allows; `most` at once
again       tokens read a second time, because pages were given up
"""

import argparse
import csv
import gzip
import time
from pathlib import Path
from typing import Any

from bench.machine import keep
from qkv.serve.pages import Pages
from qkv.serve.scheduler import Scheduler
from qkv.serve.sequence import Sequence

Lengths = list[tuple[int, int]]  # of prompt and answer


def lengths(path: Path) -> Lengths:
    """A trace's requests."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]


def serve(requests: Lengths, pages: Pages, budget: int) -> dict[str, Any]:
    """All of them from first to last."""
    it = Scheduler(pages, budget=budget, most_running=budget // 2, most_waiting=len(requests))
    for id, (prompt, answer) in enumerate(requests):
        it.add(Sequence(id, (id, *[0] * (prompt - 1)), limit=answer))
    most, start = 0, time.process_time()
    while plan := it.plan():
        it.advance(plan)
        most = max(most, len(plan.rows))
        for row in plan.rows:
            if row.last:
                row.sequence.append(0)
                if row.sequence.made == row.sequence.limit:
                    it.finish(row.sequence)
    took = time.process_time() - start
    it.check()
    once = sum(prompt + answer - 1 for prompt, answer in requests)
    return {
        "slots": f"{pages.count} of {pages.size}",
        "waste": it.mean_waste,
        "rows": it.mean_rows,
        "most": most,
        "steps": it.steps,
        "tokens a step": it.read / it.steps,
        "preemptions": it.preemptions,
        "again": it.read - once,
        "CPU µs a step": took / it.steps * 1e6,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--longest", type=int)
    parser.add_argument("--requests", type=int, help="so many of each trace, evenly spread")
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = {}
    for path in args.trace:
        every = lengths(path)
        requests = every[:: max(1, len(every) // args.requests)] if args.requests else every
        longest = args.longest or max(map(sum, requests))
        fit = [request for request in requests if sum(request) <= longest]
        print(f"{path.name}: {len(fit)} of {len(requests)} requests are no longer than {longest} tokens", flush=True)
        found[path.name] = []
        for size in (args.size, longest):
            result = serve(fit, Pages(args.tokens // size, size), args.budget)
            print(
                "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items()), flush=True
            )
            found[path.name].append(result)
    keep({"tokens": args.tokens, "budget": args.budget, "traces": found}, args.json)


if __name__ == "__main__":
    main()
