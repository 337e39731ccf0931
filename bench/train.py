"""Training steps of qkv beside transformers' on the same batches: tokens a second and peak memory, interleaved.

    python -m bench.train [--engines NAME …] [--threads 2] [--rounds 5] [--steps 2] [--json bench/results/NAME.json]

A Llama of 12.2 million parameters (384 wide, 6 layers, 6 heads, 1,024 inside, 4,096 tokens, tied), 16 sequences of 256
tokens, fused AdamW, gradients clipped to a norm of 1. An engine is a process of its own, pinned to as many processors
as it has threads, which sleeps while another one steps; every round asks each for so many steps, A, B, A, B …. What is
called bfloat16 is autocast over float32 weights; compiled is torch.compile, of transformers' whole model, and of each
block of qkv's (as train.compile has it). The first steps, which compile, are told apart. FLOP/s are those of the
model's products (three times the forward's), beside what the same threads reach at best in a plain product of matrices.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import Others, describe, heading, keep, memory, pin, quiet
from qkv.train.peak import gemm_peak

SEQUENCES, LENGTH = 16, 256
CONFIG = {
    "vocab_size": 4096, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
    "intermediate_size": 1024, "tie_word_embeddings": True, "max_position_embeddings": LENGTH,
}  # fmt: skip
WARM = 3  # steps before the first that counts
KINDS = ("float32", "bfloat16", "bfloat16 compiled")
ENGINES = [f"{whose} {kind}" for kind in KINDS for whose in ("qkv", "transformers")]


def ours(kind: str) -> Callable[[Any], float]:
    """ids [B, L + 1] → the loss, after a step."""
    import torch

    from qkv.families.family import find
    from qkv.nn.stack import Transformer
    from qkv.train import loss, optim, parallel
    from qkv.train.causal import shifted
    from qkv.train.learner import Learner, compile_blocks
    from qkv.train.recipe import Train
    from qkv.train.step import Stepper

    class Next:
        """The objective, without a tokenizer."""

        def loss(self, model: Transformer, feed: Any) -> torch.Tensor:
            return loss.of_feed(model, feed)

    torch.manual_seed(0)
    model = Transformer(find("llama").spec({"model_type": "llama", **CONFIG})).train()
    settings: Any = {"steps": 1, "lr": 1e-4, "dtype": kind.split()[0]}
    train = Train(**settings)
    if kind.endswith("compiled"):
        compile_blocks(model)
    objective: Any = Next()
    learner = Learner(model, objective, train.dtype)
    stepper = Stepper(learner, learner, optim.make(model, train), train, 0, parallel.ALONE)

    def step(ids: Any) -> float:
        found = stepper.gradients([shifted(list(ids.numpy()), [0] * len(ids))], 0)
        stepper.move(1.0)
        return found.loss

    return step


def theirs(kind: str) -> Callable[[Any], float]:
    """The same of transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    given: Any = CONFIG
    model: Any = LlamaForCausalLM(LlamaConfig(**given)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run: Any = torch.compile(model) if kind.endswith("compiled") else model

    def step(ids: Any) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "float32"):
            loss = run(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def work(name: str, threads: int) -> None:
    """A worker: a line with a number of steps in, a line of their seconds out."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pin(threads)
    import torch

    whose, kind = name.split(" ", 1)
    step = {"qkv": ours, "transformers": theirs}[whose](kind)
    draw = torch.Generator().manual_seed(1)

    def answer(what: dict[str, Any]) -> None:
        print(json.dumps(what | {"peak": memory()["peak"]}), file=answers, flush=True)

    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            ids = torch.randint(CONFIG["vocab_size"], (SEQUENCES, LENGTH + 1), generator=draw)
            start, used = time.perf_counter(), time.process_time()
            loss = step(ids)
            took.append([time.perf_counter() - start, time.process_time() - used])
        answer({"took": took, "loss": loss})


class Worker:
    """An engine's process."""

    def __init__(self, name: str, threads: int) -> None:
        count = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.train", "--worker", name, "--threads", str(threads)],
            env={**os.environ, **count}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.name = name
        self.wall: list[float] = []
        self.used: list[float] = []
        first = self.ask(WARM)
        self.first = first["took"][0][0]

    def ask(self, steps: int) -> dict[str, Any]:
        """So many steps. SystemExit: it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        self.peak, self.loss = answer["peak"], answer["loss"]
        return answer

    def measure(self, steps: int) -> None:
        """So many that count."""
        for wall, used in self.ask(steps)["took"]:
            self.wall.append(wall)
            self.used.append(used)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def figures(self) -> dict[str, float]:
        """Rates are tokens a second; memory MB; times seconds a step."""
        tokens = SEQUENCES * LENGTH
        return {
            "best": tokens / min(self.wall), "median": tokens / statistics.median(self.wall),
            "processor": min(self.used), "first step": self.first, "memory": self.peak, "loss": self.loss,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        work(args.worker, args.threads)
        return
    load_before = quiet()
    workers = [Worker(name, args.threads) for name in args.engines]
    pids = [os.getpid(), *(worker.process.pid for worker in workers)]
    others = Others()
    others.watch(pids)
    for round_ in range(args.rounds):
        for worker in workers:
            worker.measure(args.steps)
        print(f"round {round_ + 1}/{args.rounds}", file=sys.stderr)
    taken = others.cores(pids)
    for worker in workers:
        worker.close()
    result = {"machine": describe(args.threads), "load": load_before, "cores of others": taken}
    result |= peaks(args.threads) | {"engines": {worker.name: worker.figures() for worker in workers}}
    show(result)
    keep(result, args.json)


def peaks(threads: int) -> dict[str, Any]:
    """What a token costs, and what the threads can do at best."""
    import torch

    from qkv import count
    from qkv.families.family import find

    pin(threads)
    spec = find("llama").spec({"model_type": "llama", **CONFIG})
    best = {kind: gemm_peak(getattr(torch, kind)) / 1e9 for kind in ("float32", "bfloat16")}
    return {"FLOP a token": 3 * count.flops_per_token(spec, LENGTH // 2), "best GFLOP/s": best}


def show(result: dict[str, Any]) -> None:
    """The table a person reads."""
    print(heading(result))
    print(f"other processes took {result['cores of others']:.2f} cores meanwhile")
    print("at best:", ", ".join(f"{v:.0f} GFLOP/s in {k}" for k, v in result["best GFLOP/s"].items()))
    engines = result["engines"]
    of_theirs = {key: found for key, found in engines.items() if key.startswith("transformers")}
    base = max((found["median"] for found in of_theirs.values()), default=float("nan"))
    top = max((found["best"] for found in of_theirs.values()), default=float("nan"))
    for name, found in engines.items():
        gflops = found["best"] * result["FLOP a token"] / 1e9
        share = gflops / result["best GFLOP/s"][name.split()[1]]
        print(
            f"{name:30} {found['median']:6.0f} tok/s (best {found['best']:.0f}) {gflops:4.0f} GFLOP/s = {share:3.0%}   "
            f"{found['median'] / base:4.2f}x (best {found['best'] / top:4.2f}x) of transformers' best   "
            f"{found['processor']:5.2f} s of processors a step   first {found['first step']:4.0f} s   "
            f"{found['memory']:5.0f} MB   loss {found['loss']:.3f}"
        )


if __name__ == "__main__":
    main()
