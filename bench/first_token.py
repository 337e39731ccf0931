"""From the shell to the first token, beside `python -c 'import torch'`, interleaved; and `qkv --help`.

    python -m bench.first_token [--rounds 7] [--json bench/results/NAME.json]

The promise: `qkv generate` on the cached default model needs at most 2.5 s more than importing torch, and `--help`
under 0.3 s. The first token is the first byte on standard output.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.cold import run_cold
from bench.machine import describe, quiet, spread
from qkv.load.reference import resolve

QKV = [sys.executable, "-m", "qkv"]
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch; print(1)"],
    "first token": [*QKV, "generate", "The capital of France is", "--max-tokens", "8"],
    "help": [*QKV, "--help"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    resolve("smollm2")
    load = quiet()
    times: dict[str, list[float]] = defaultdict(list)
    for round_ in range(args.rounds + 1):
        for name, command in COMMANDS.items():
            took = run_cold(command).first
            if round_:
                times[name].append(took)
    result: dict[str, Any] = {
        "machine": describe(0),
        "load": load,
        "seconds": {name: spread(t) for name, t in times.items()},
    }
    more = [a - b for a, b in zip(times["first token"], times["import torch"], strict=True)]
    result["first token beyond import torch"] = spread(more)
    for name, t in {**result["seconds"], "beyond import torch": spread(more)}.items():
        print(f"{name:24} median {t['median']:.2f} s, best {t['min']:.2f} s, worst {t['max']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
