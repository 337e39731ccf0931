"""qkv beside transformers on the same weights: load, prefill and decode, interleaved in one run.

    python -m bench.peers [--threads 2] [--rounds 5] [--json bench/results/NAME.json]

Every round measures A, B, A, B … on the same ids and makes both decode the same number of greedy tokens; the medians
are to be quoted. GB/s is what a decode step must read (weights and cache) by the time it took; FLOP/s what a prefill
must compute; both beside what the same threads reach at best (a plain sum, a plain matrix product).
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe, heading, keep, pin, quiet, read_bandwidth, seconds, spread
from qkv import count
from qkv.load.reference import resolve
from qkv.model import Model, load
from qkv.train.peak import gemm_peak

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOADS = {
    "qkv": "import sys, time, torch; from qkv.model import load; t = time.perf_counter(); load(sys.argv[1]);"
    "print(time.perf_counter() - t)",
    "transformers": "import sys, time, torch, os;"
    "from transformers import AutoModelForCausalLM as A, AutoTokenizer as T;"
    "t = time.perf_counter(); d, f = os.path.split(sys.argv[1]);"
    "A.from_pretrained(d, gguf_file=f, dtype=torch.float32); T.from_pretrained(d, gguf_file=f);"
    "print(time.perf_counter() - t)",
}


class Qkv:
    """A step of ours: ids in, the last position's logits out, the cache kept."""

    def __init__(self, path: str, dtype: torch.dtype) -> None:
        self.model: Model = load(path, dtype)

    def start(self) -> None:
        self.cache = self.model.new_cache()

    def step(self, ids: list[int]) -> int:
        from qkv.nn.batch import Batch

        batch = Batch([len(ids)], self.cache.starts([len(ids)]), self.model.device)
        states = self.model.states(torch.tensor(ids), batch, self.cache)
        return int(self.model.logits(states[-1:]).argmax())


class Transformers:
    """The same step of theirs."""

    def __init__(self, path: str, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        folder, file = Path(path).parent, Path(path).name
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype).eval()

    def start(self) -> None:
        self.past = None

    def step(self, ids: list[int]) -> int:
        out = self.model(torch.tensor([ids]), past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        return int(out.logits[0, -1].argmax())


def decode(engine: Qkv | Transformers, prompt: list[int], tokens: int) -> tuple[float, float, list[int]]:
    """(prefill seconds, seconds a token, the tokens)."""
    engine.start()
    first: list[int] = []
    prefill = seconds(lambda: first.append(engine.step(prompt)))
    out = first

    def rest() -> None:
        for _ in range(tokens):
            out.append(engine.step(out[-1:]))

    return prefill, seconds(rest) / tokens, out


def measure(engines: dict[str, Any], lengths: list[int], tokens: int, rounds: int, vocab: int) -> dict[str, Any]:
    """Rates by engine and prompt length, and whether all engines of a dtype chose the same tokens."""
    rates: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    chosen: dict[tuple[str, int], list[int]] = {}
    prompts = {n: torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths}
    for round_ in range(rounds + 1):  # the first one warms up
        for name, engine in engines.items():
            for n in lengths:
                prefill, step, out = decode(engine, prompts[n], tokens)
                chosen[name, n] = out
                if round_:
                    rates[name][f"prefill {n} tok/s"].append(n / prefill)
                    rates[name][f"decode at {n} tok/s"].append(1 / step)
        print(f"round {round_}/{rounds}", file=sys.stderr)
    same = {f"{n} tokens, float32": chosen["qkv float32", n] == chosen["transformers float32", n] for n in lengths}
    return {"rates": {e: {k: spread(v) for k, v in r.items()} for e, r in rates.items()}, "same tokens": same}


def load_times(path: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds from a process that has imported its library to a model with its tokenizer, one process each."""
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, code in LOADS.items():
            out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
            times[name].append(float(out.stdout.split()[-1]))
    return {name: spread(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a reference that resolves to a GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="decoded tokens a measurement")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 128, 512])
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    pin(args.threads)
    load_before = quiet()
    path = str(resolve(args.model).path)
    best = {"read GB/s": read_bandwidth(), **{f"{d} GFLOP/s": gemm_peak(t) / 1e9 for d, t in DTYPES.items()}}
    result: dict[str, Any] = {"machine": describe(args.threads), "load": load_before, "best": best}
    result["load seconds"] = load_times(path, args.rounds)
    makers: dict[str, Callable[[str, torch.dtype], Any]] = {"qkv": Qkv, "transformers": Transformers}
    engines = {f"{peer} {d}": make(path, dtype) for d, dtype in DTYPES.items() for peer, make in makers.items()}
    spec = engines["qkv float32"].model.spec
    with torch.no_grad():
        result |= measure(engines, args.lengths, args.tokens, args.rounds, spec.vocab)
    show(result, spec, args.lengths, args.tokens)
    keep(result, args.json)


def show(result: dict[str, Any], spec: Any, lengths: list[int], tokens: int) -> None:
    """The table a person reads."""
    best, rates = result["best"], result["rates"]
    print(heading(result))
    print("at best:", ", ".join(f"{v:.0f} {k}" for k, v in best.items()))
    for name, t in result["load seconds"].items():
        print(f"load {name:24} {t['median']:7.2f} s (best {t['min']:.2f})")
    for n in lengths:
        for name, rate in rates.items():
            dtype = name.split()[1]
            prefill, decode_ = rate[f"prefill {n} tok/s"], rate[f"decode at {n} tok/s"]
            flops = prefill["median"] * count.flops_per_token(spec, n // 2) / 1e9
            size = DTYPES[dtype].itemsize
            read = count.parameters(spec) * size + count.cache_bytes(spec, n + tokens // 2, 1, size)
            gbs = decode_["median"] * read / 1e9
            print(
                f"{name:24} prefill {n:4}: {prefill['median']:7.1f} tok/s (best {prefill['max']:.1f}) "
                f"{flops:6.0f} GFLOP/s = {flops / best[f'{dtype} GFLOP/s']:4.0%}   "
                f"decode: {decode_['median']:6.1f} tok/s (best {decode_['max']:.1f}) "
                f"{gbs:5.1f} GB/s = {gbs / best['read GB/s']:4.0%}"
            )
    print("same greedy tokens:", result["same tokens"])


if __name__ == "__main__":
    main()
