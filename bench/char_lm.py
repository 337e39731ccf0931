"""Characters of Shakespeare, beside nanoGPT on the same text: seconds of training to its published validation loss.

    python -m bench.char_lm --nanogpt CHECKOUT --data DIR [--threads 2] [--json bench/results/NAME.json]

CHECKOUT: github.com/karpathy/nanoGPT. DIR holds lm_tinyshakespeare/train.txt and valid.txt, whose parts are nanoGPT's.
nanoGPT runs its README's command for a CPU (4 layers, 4 heads, 128 wide, blocks of 64, batches of 12, 2,000 steps:
"a loss of only 1.88"); qkv runs recipes/char-lm.toml: a model of the same size and blocks of the same length, but
fewer steps, by another optimizer. Each runs once as a process (--rounds: as often), ours first and last if more.

Both schedules go down to the end of their runs, so the time to the loss is the run's: `command` is the whole process,
from its start to its end (texts are tokenized anew; the native library that samples are made with is compiled before);
`training` its steps alone, without evaluations, start and checkpoints. The loss is that of
the weights that are left, by one function for both: all characters of the validation text but the first, in blocks
of 64 that overlap by one character.
"""

import argparse
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.machine import describe, heading, keep, quiet
from qkv.kernels.native import native
from qkv.model import load
from qkv.paths import cache_root
from qkv.train.log import read

ROOT = Path(__file__).parents[1]
TEXTS = "lm_tinyshakespeare"
BLOCK = 64
GOAL = 1.88  # nanoGPT's README
THEIRS = {
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 1, "block_size": BLOCK, "batch_size": 12,
    "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip
Logits = Callable[[Tensor], Tensor]  # ids [B, L] → [B, L, V]


def loss(logits: Logits, ids: list[int]) -> float:
    """Nats a character."""
    total, rows = 0.0, torch.tensor(ids)
    whole = (len(rows) - 1) // BLOCK
    blocks = [rows[: whole * BLOCK + 1].unfold(0, BLOCK + 1, BLOCK), rows[None, whole * BLOCK :]]
    with torch.no_grad():
        for some in (part for block in blocks if block.shape[1] > 1 for part in torch.split(block, 64)):
            found = logits(some[:, :-1]).float().flatten(0, 1)
            total += float(F.cross_entropy(found, some[:, 1:].flatten(), reduction="sum"))
    return total / (len(ids) - 1)


def by_qkv(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Our run, in a process."""
    out, cache = folder / "run", folder / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(compiled_once())
    command = [sys.executable, "-m", "qkv", "train", str(ROOT / "recipes/char-lm.toml"), *args.overrides]
    took = timed([*command, f"data.root={args.data.resolve()}", "--out", str(out)], args, cache=cache)
    model = load(str(out), torch.float32)
    ids = model.tokenizer.pieces([text_of(args.data, "valid")])[0].ids  # type: ignore[union-attr]
    steps = sum(line["seconds"] for line in read(out).steps)
    return {"command": took, "training": steps, "loss": loss(lambda some: model(some), list(ids))}


def by_nanogpt(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Their run, in a process."""
    known = sorted(set(text_of(args.data, "train") + text_of(args.data, "valid")))
    number = {character: i for i, character in enumerate(known)}
    data = folder / "data"
    data.mkdir()
    for part, name in (("train", "train.bin"), ("valid", "val.bin")):
        np.array([number[c] for c in text_of(args.data, part)], np.uint16).tofile(data / name)
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(known)}))
    # the data's folder is joined to their own, so a whole path takes its place
    more = {"dataset": data.resolve(), "out_dir": folder / "out", "always_save_checkpoint": True}
    given = [f"--{key}={value}" for key, value in (THEIRS | more).items()]
    log = folder / "log.txt"
    took = timed([sys.executable, "train.py", "config/train_shakespeare_char.py", *given], args, args.nanogpt, log=log)
    each = [float(ms) for ms in re.findall(r"^iter \d+: .*time ([\d.]+)ms", log.read_text(), re.M)]
    steps = sum(ms for i, ms in enumerate(each) if i % 250) / 1000  # every 250th has an evaluation in it
    sys.path.insert(0, str(args.nanogpt))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    held = torch.load(folder / "out/ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**held["model_args"]))
    model.load_state_dict(held["model"])
    model.eval()
    ids = [number[c] for c in text_of(args.data, "valid")]
    # they give the logits of all places only to those who bring targets
    return {"command": took, "training": steps, "loss": loss(lambda some: model(some, some)[0], ids)}


ENGINES = {"qkv": by_qkv, "nanoGPT": by_nanogpt}


def compiled_once() -> Path:
    """The folder of the native library, which is compiled once a machine and not once a run (20 s)."""
    native()
    kernels = cache_root() / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    return kernels


def text_of(data: Path, part: str) -> str:
    """The training or validation text."""
    return (data / TEXTS / f"{part}.txt").read_text(encoding="utf-8")


def timed(
    command: list[str],
    args: argparse.Namespace,
    where: Path = ROOT,
    *,
    cache: Path | None = None,
    log: Path | None = None,
) -> float:
    """Seconds of a command that must succeed."""
    count = {key: str(args.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **count, **({} if cache is None else {"QKV_CACHE": str(cache)})}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=where, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    if log is not None:
        log.write_text(done.stdout)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of our recipe: train.steps=400")
    parser.add_argument("--nanogpt", type=Path, help="a checkout; without it only ours is run")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    load_before = quiet()
    names = list(ENGINES) if args.nanogpt is not None else ["qkv"]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for round_ in range(args.rounds):
        for name in names if round_ % 2 == 0 else names[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                runs[name].append(ENGINES[name](args, Path(folder)))
            print(name, runs[name][-1], file=sys.stderr)
    result: dict[str, Any] = {"machine": describe(args.threads), "load": load_before, "goal": GOAL}
    result |= {"changes": args.overrides, "runs": runs}
    show(result)
    keep(result, args.json)


def show(result: dict[str, Any]) -> None:
    """The table a person reads."""
    print(heading(result))
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in result["runs"].items()
    }
    for name, found in middle.items():
        reached = "reached" if round(found["loss"], 2) <= result["goal"] else "not reached"
        print(
            f"{name:8} {found['command']:7.1f} s in all, {found['training']:7.1f} s of steps   "
            f"loss {found['loss']:.4f} ({result['goal']} {reached})"
        )
    if len(middle) == 2:
        share = {key: middle["qkv"][key] / middle["nanoGPT"][key] for key in ("command", "training")}
        print(f"qkv needs {share['command']:.2f} of nanoGPT's time in all, {share['training']:.2f} of its steps'")


if __name__ == "__main__":
    main()
