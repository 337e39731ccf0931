"""From the shell to the first token, in whole processes: time to the first byte on standard output, and memory."""

import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any, NamedTuple

from bench.machine import memory, spread

PROMPT = "The capital of France is"
LLAMA = """
import sys
from llama_cpp import Llama
import llama_cpp.llama_cpp as c
file, threads, prompt, extra = sys.argv[1:]
params = c.llama_model_default_params()
params.use_extra_bufts = extra == "on"
c.llama_model_default_params = lambda: params  # Llama has no argument for it
m = Llama(file, n_ctx=512, n_threads=int(threads), n_threads_batch=int(threads), verbose=False)
print(m(prompt, max_tokens=1, temperature=0)["choices"][0]["text"])
"""


class Cold(NamedTuple):
    """Seconds to the first byte and to the end; the most MB that lay in memory."""

    first: float
    whole: float
    peak: float


def run_cold(command: list[str], env: dict[str, str] | None = None) -> Cold:
    """One process, which says little: nobody reads on behind the first byte. SystemExit: it failed, or said nothing."""
    # Where Python may write no bytecode, each process would compile qkv's sources anew, which no user's does.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(env or {})}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    assert process.stdout is not None
    said = process.stdout.read(1)
    first, peak = time.perf_counter() - start, math.nan
    while process.poll() is None:  # (wait4's maximum counts what the parent held when it forked)
        peak = memory(process.pid).get("peak", peak)
        time.sleep(0.002)
    whole = time.perf_counter() - start
    process.stdout.close()
    if process.returncode or not said:
        raise SystemExit(f"{' '.join(command[:3]).strip().splitlines()[0]} … ended with {process.returncode}")
    return Cold(first, whole, peak)


def measure_cold(model: str, file: str, threads: int, rounds: int, engines: list[str]) -> dict[str, Any]:
    """`import torch`, `qkv generate` for one token, and llama.cpp's way to one, in turn; a round more warms up."""
    commands = {"import torch": [sys.executable, "-c", "import torch; print(1)"]}
    if "qkv" in engines:
        one = ["generate", PROMPT, "-m", model, "--max-tokens", "1", "--threads", str(threads)]
        commands["qkv"] = [sys.executable, "-m", "qkv", *one]
    commands |= {name: llama(name, file, threads) for name in engines if name.startswith("llama.cpp")}
    times: dict[str, list[Cold]] = defaultdict(list)
    for round_ in range(rounds + 1):
        for name, command in list(commands.items()):
            try:
                cold = run_cold(command, {"OMP_NUM_THREADS": str(threads)})
            except SystemExit as error:
                print(f"warning: {name} is left out: {error}", file=sys.stderr)
                del commands[name]
                continue
            if round_:
                times[name].append(cold)
    return {name: summary(runs, times["import torch"]) for name, runs in times.items()}


def llama(name: str, file: str, threads: int) -> list[str]:
    """llama.cpp's command."""
    return [sys.executable, "-c", LLAMA, file, str(threads), PROMPT, "off" if name.endswith("-rows") else "on"]


def summary(runs: list[Cold], torch: list[Cold]) -> dict[str, Any]:
    """Seconds to the first byte, alone and beyond `import torch` of the same round; MB at most."""
    beyond = [run.first - base.first for run, base in zip(runs, torch, strict=False)]
    return {
        "first": spread([run.first for run in runs]),
        "whole": spread([run.whole for run in runs]),
        "beyond": spread(beyond),
        "peak": spread([run.peak for run in runs]),
    }
