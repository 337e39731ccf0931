"""Prefill, decode and batches: qkv beside llama.cpp, transformers and CTranslate2 on the same weights.

    python -m bench.decode [--only prefill decode batch memory cold] [--engines qkv llama.cpp …] [--rounds 5]
                           [--tokens 32] [--json bench/results/DATE-decode.json] [--markdown FILE]

Every engine of `bench.engines` has a process of its own, with its best environment and pinned to the same processors;
they are asked in turn, A B C A B C …, and whoever is not asked sleeps. Before each turn there is a rest of 0.3 s: the
threads of GNU OpenMP spin for a while after their last work, and would take the next engine's cores. All get the same
ids (a licence's text: English without surprises), and choose as many greedy tokens. What other processes took of the
cores in the meantime is written beside the figures. An engine that can't start or ends in its first run is left out,
with a line that says so.

GB/s: bytes of weights and cache that a decode step must read, by the time it took; beside what a plain sum reads.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.cold import measure_cold
from bench.decode_table import markdown, show
from bench.engines import ENGINES, Ids, Run
from bench.machine import Others, describe, keep, pin, quiet, read_bandwidth, spread
from bench.worker import Worker
from qkv import count, spec
from qkv.load.describe import describe as described
from qkv.load.gguf import GgufFile

PARTS = ("prefill", "decode", "batch", "memory", "cold")
REST = 0.3
TEXT = Path(__file__).parents[1] / "LICENSE"


class Case(NamedTuple):
    """`batch` prompts of `length` tokens, and `tokens` more of each."""

    batch: int
    length: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.batch}×{self.length}"


def cases(args: argparse.Namespace) -> list[Case]:
    """What is to be run for the parts asked for; a prompt's prefill and decode are one run."""
    tokens: dict[tuple[int, int], int] = {}
    if "prefill" in args.only:
        tokens |= {(1, n): 0 for n in args.prefill}
    if "decode" in args.only:
        tokens |= {(1, n): args.tokens for n in args.contexts}
    if "batch" in args.only:
        tokens |= {(batch, n): args.tokens for n in args.batch_contexts for batch in (1, *args.batches)}
    return [Case(batch, n, many) for (batch, n), many in sorted(tokens.items())]


def prompts(ids: list[int], case: Case) -> Ids:
    """Different pieces of the text, which begins anew at its end."""
    long = ids * (2 + case.length // len(ids))
    return [long[start : start + case.length] for start in (37 * i % len(ids) for i in range(case.batch))]


@contextmanager
def plain_folder(ref: str, engines: list[str]) -> Iterator[str]:
    """A folder of the dequantized weights, where an engine needs one: what transformers makes of a GGUF file too, but
    in a second instead of thirty."""
    with tempfile.TemporaryDirectory() as folder:
        if any(ENGINES[name].plain for name in engines):
            from qkv.model import load, save

            save(load(ref, "float32"), Path(folder) / "plain")
        if "ctranslate2" in engines:
            from ctranslate2.converters import TransformersConverter

            into = str(Path(folder) / "plain" / "ctranslate2")
            TransformersConverter(str(Path(folder) / "plain")).convert(into, quantization="int8")
        yield str(Path(folder) / "plain")


def start(names: list[str], file: str, plain: str, threads: int, ids: list[int]) -> tuple[list[Worker], dict[str, Any]]:
    """The engines that run, each after a short first run; what each said of itself and took of the memory."""
    workers: list[Worker] = []
    about: dict[str, Any] = {}
    for name in names:
        try:
            worker = Worker(name, plain if ENGINES[name].plain else file, threads)
            worker.run([ids[:16]], 8)
        except (RuntimeError, BrokenPipeError) as error:
            print(f"warning: {name} is left out: {error}", file=sys.stderr)
            about[name] = {"about": f"left out: {error}"}
            continue
        workers.append(worker)
        about[name] = {"about": worker.about, "memory": worker.memory()}
        print(f"{name}: {worker.about}", file=sys.stderr)
    if not workers:
        raise SystemExit("none of the engines runs")
    return workers, about


def measure(workers: list[Worker], todo: list[Case], ids: list[int], rounds: int) -> dict[str, Any]:
    """Rates by case and engine, one a round; the tokens; the cores that others took. One more round warms up."""
    rates: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    chosen: dict[str, dict[str, Ids]] = defaultdict(dict)
    taken, bandwidth, others, pids = [], [], Others(), [os.getpid(), *(worker.process.pid for worker in workers)]
    for round_ in range(rounds + 1 if todo else 0):
        for case in todo:
            text = prompts(ids, case)
            for worker in workers:
                time.sleep(REST)
                others.watch(pids)
                run = worker.run(text, case.tokens)
                taken.append(others.cores(pids))
                chosen[case.name][worker.name] = run.tokens
                if round_:
                    note(rates[case.name][worker.name], case, run)
        time.sleep(REST)
        bandwidth.append(read_bandwidth())
        print(f"round {round_}/{rounds}, others took {max(taken, default=0):.2f} cores at most", file=sys.stderr)
    return {
        "rates": {c: {e: dict(of) for e, of in engines.items()} for c, engines in rates.items()},
        "judge": judge(worker.name for worker in workers),
        "differ": {name: first_differences(runs) for name, runs in chosen.items()},
        "read GB/s": max(bandwidth, default=0.0),
        "others' cores": spread(taken) if taken else None,
    }


def note(rates: dict[str, list[float]], case: Case, run: Run) -> None:
    """Tokens a second, of all sequences together."""
    rates["prefill"].append(case.batch * case.length / run.prefill)
    if case.tokens:
        rates["decode"].append(case.batch * case.tokens / run.decode)


def first_differences(runs: dict[str, Ids]) -> dict[str, int | None]:
    """For each engine the first of its tokens, in any sequence, that is not the judge's; None: all are the same."""
    want = runs[judge(runs)]

    def first(got: Ids) -> int | None:
        places = [
            i for a, b in zip(want, got, strict=True) for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y
        ]
        return min(places, default=None)

    return {name: first(got) for name, got in runs.items()}


def judge(names: Iterable[str]) -> str:
    """Whose tokens the others are held to: transformers' float32, where it runs, else the first engine."""
    names = list(names)
    return "transformers-float32" if "transformers-float32" in names else names[0]


def bytes_read(model: spec.Model, file: GgufFile, engine: str, batch: int, length: int) -> int:
    """What one decode step of an engine must read: each weight once, and the cache of `length` tokens a sequence."""
    width, table = ENGINES[engine].width, "token_embd.weight"
    untied = "output.weight" in file.tensors  # then the table is only looked up
    stored = sum(tensor.nbytes for name, tensor in file.tensors.items() if name != table or not untied)
    numbers = count.parameters(model) - untied * model.vocab * model.dim
    weights = stored if width is None else numbers * width
    return weights + count.cache_bytes(model, length, batch, ENGINES[engine].cache)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a reference that resolves to a GGUF file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded tokens a measurement")
    parser.add_argument("--prefill", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 512, 2000])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch-contexts", type=int, nargs="+", default=[16])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--markdown", type=Path, help="write the README's table here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    pin(args.threads)
    result: dict[str, Any] = {"machine": describe(args.threads), "load": quiet()}
    source = described(args.model, config_only=False, progress=True)
    if source.gguf is None:
        raise SystemExit(f"{args.model} is not a GGUF file, which llama.cpp needs")
    todo = cases(args)
    result |= {"model": source.gguf.path.name, "bytes": source.gguf.path.stat().st_size, "tokens": args.tokens}
    if todo or "memory" in args.only:
        result |= warm(args, source.gguf, todo)
        result["bytes read"] = {
            case.name: {
                name: bytes_read(source.spec, source.gguf, name, case.batch, case.length + case.tokens // 2)
                for name in result["rates"].get(case.name, ())
            }
            for case in todo
        }
    if "cold" in args.only:
        result["cold"] = measure_cold(args.model, str(source.gguf.path), args.threads, args.rounds, args.engines)
    show(result)
    keep(result, args.json)
    if args.markdown:
        args.markdown.write_text(markdown(result))


def warm(args: argparse.Namespace, file: GgufFile, todo: list[Case]) -> dict[str, Any]:
    """All that is measured of engines that are already loaded."""
    from qkv.inputs.text import Tokenizer

    ids = list(Tokenizer.from_gguf(file.metadata).encode(TEXT.read_text()))
    with plain_folder(args.model, args.engines) as plain:
        workers, about = start(args.engines, str(file.path), plain, args.threads, ids)
        try:
            return {"engines": about, **measure(workers, todo, ids, args.rounds)}
        finally:
            for worker in workers:
                worker.close()


if __name__ == "__main__":
    main()
