"""A Transformer from scratch by qkv beside transformers' MarianMTModel: BLEU and seconds for the same tokens.

    python -m bench.translate [--steps 2000 | --run runs/translate] [--together] [--data ROOT] [--threads 2]
        [--keep FOLDER] [--json bench/results/NAME.json] [KEY=VALUE ...]

qkv trains recipes/translate.toml (or `--run` is a run that has ended). Then MarianMTModel, as transformers has it in
training mode with its fastest attention, begins with the same weights and takes the same number of steps on the very
same batches, padded, by the same AdamW, schedule, clipping, label smoothing and autocast, in a plain loop. Seconds are
those of the steps, evaluations and files apart. Both are scored by qkv's greedy generation and sacrebleu on the test
records, which neither has seen. `--together`: both train at the same time, each with one thread on a processor of its
own, so that whatever else the machine does slows both. KEY=VALUE are changes of the recipe.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.machine import describe, heading, keep, pin, quiet
from bench.recipes import DATA, load

EVERY = 100  # steps between two lines


def by_qkv(args: argparse.Namespace, out: Path) -> None:
    """Train, as `qkv train` does."""
    from qkv.train.run import train

    said = [f"train.steps={args.steps}", f"data.root={args.data}", "eval.every=none", "eval.limit=100"]
    train(load("translate", *said, *args.overrides), out, resume="never")


def by_transformers(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """The other model, on the batches of a run of qkv."""
    import torch
    from transformers import MarianMTModel

    from qkv.model import save
    from qkv.train import parallel
    from qkv.train.loader import Loader
    from qkv.train.order import Order
    from qkv.train.prepare import prepare
    from qkv.train.schedule import Progress, factor

    recipe = _recipe(run)
    steps_in_all = args.steps if args.together else _state(run)["step"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(recipe, Path(folder), parallel.World())
        save(prepared.model, Path(folder) / "begun")
        model = MarianMTModel.from_pretrained(Path(folder) / "begun").train()
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_positions.weight.requires_grad_(False)  # sines, as qkv's and the paper's: they aren't learned
        model.config.use_cache = False
        order = Order(prepared.samples.sizes, recipe.batch, recipe.seed)
        steps = Loader(prepared.samples, order, prepared.objective, recipe.seed).steps()
        train = recipe.train
        optimizer = _optimizer(model, train)
        torch.manual_seed(recipe.seed)
        seconds, tokens, loss = 0.0, 0, 0.0
        for number in range(steps_in_all):
            began = time.perf_counter()
            feeds = next(steps)[0]
            for group in optimizer.param_groups:
                progress = Progress(number, None if train.steps is None else train.steps, None)
                group["lr"] = train.lr * factor(train.schedule, progress)
            loss = _step(model, optimizer, feeds, recipe)
            seconds += time.perf_counter() - began
            tokens += sum(feed.tokens for feed in feeds)
            if number % EVERY == 0:
                rate = tokens / seconds
                print(f"transformers: step {number + 1}, loss {loss:.4f}, {rate:.0f} tok/s", file=sys.stderr)
        left = Path(folder) / "left"
        model.save_pretrained(left)
        for file in run.glob("*token*.json"):
            (left / file.name).write_bytes(file.read_bytes())
        return {"seconds": seconds, "tokens": tokens, "loss": loss, **_score(left, recipe)}


def _optimizer(model: Any, train: Any) -> Any:
    """The recipe's AdamW."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps, fused=True)


def _step(model: Any, optimizer: Any, feeds: Sequence[Any], recipe: Any) -> float:
    """One step; the mean loss of a target, before it."""
    import torch

    optimizer.zero_grad(set_to_none=True)
    targets, total = sum(feed.targets for feed in feeds), 0.0
    for feed in feeds:
        sources, read = _padded(feed.ids, 0), _padded(feed.target, 0)
        labels = _padded(feed.labels.split([len(row) for row in feed.target]), -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.dtype == "bfloat16"):
            logits = model(
                input_ids=sources,
                attention_mask=_padded([torch.ones_like(row) for row in feed.ids], 0),
                decoder_input_ids=read,
            ).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            label_smoothing=recipe.objective.smoothing,
            reduction="sum",
        )
        (loss / targets).backward()
        total += loss.item() / targets
    if recipe.train.clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip)
    optimizer.step()
    return total


def _padded(rows: Any, value: int) -> Any:
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([row.long() for row in rows], batch_first=True, padding_value=value)


def of_qkv(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """What a run took, and its score."""
    state = _state(run)
    return {"seconds": state["seconds"], "tokens": state["tokens"], "steps": state["step"], **_score(run, _recipe(run))}


def _recipe(run: Path) -> Any:
    """A run's recipe, with its tokenizer."""
    from qkv.train import recipe_file

    return recipe_file.load(run / "recipe.toml", [f"tokenizer.from={run.resolve() / 'tokenizer'}"])


def _state(run: Path) -> dict[str, Any]:
    """Where the run ended."""
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: path.name)
    state: dict[str, Any] = json.loads((newest / "state.json").read_text())["loop"]
    return state


def _score(folder: Path, recipe: Any) -> dict[str, float]:
    """loss (without smoothing), bleu and chrf on the test records, in float32."""
    import torch

    from qkv.model import load as load_model
    from qkv.train.score import score_run

    score = score_run(load_model(str(folder), torch.float32), recipe, "test", metrics=("loss", "bleu", "chrf"))
    return dict(score.evaluation.values)


WORKERS: dict[str, Callable[[argparse.Namespace, Path], Any]] = {
    "train": by_qkv,
    "qkv": of_qkv,
    "transformers": by_transformers,
}


def measure(args: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Each engine in a process of its own: by turns, or both at a time."""

    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench.translate", *sys.argv[1:], "--worker", name, "--run", str(run)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def end(process: subprocess.Popen[str]) -> Any:
        said = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"{process.args}: ended with {process.returncode}")
        return json.loads(said.strip().splitlines()[-1])

    if args.together:
        ours = begin("train")
        while not (run / "log.jsonl").exists() and ours.poll() is None:  # until the tokenizer is made
            time.sleep(1)
        theirs = begin("transformers")
        end(ours)
        return {"qkv": end(begin("qkv")), "transformers": end(theirs)}
    if args.run is None:
        end(begin("train"))
    return {name: end(begin(name)) for name in ("qkv", "transformers")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--run", type=Path, help="a run of qkv that has ended, in place of a new one")
    parser.add_argument("--together", action="store_true", help="both at the same time, a processor each")
    parser.add_argument("--keep", type=Path, help="leave qkv's run here")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.together:
        if args.run is not None and args.worker is None:
            parser.error("--together trains a new run; --keep says where")
        args.threads = 1
    if args.worker is not None:
        pin(args.threads, first=int(args.together and args.worker == "transformers"))
        print(json.dumps(WORKERS[args.worker](args, args.run)))
        return
    load_before = quiet()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, args.run or args.keep or Path(folder) / "translate")
    result = {"machine": describe(args.threads), "load": load_before, "changes": args.overrides, **found}
    show(result)
    keep(result, args.json)


def show(result: dict[str, Any]) -> None:
    """The table a person reads."""
    print(heading(result))
    ours, theirs = result["qkv"], result["transformers"]
    for name, one in (("qkv", ours), ("transformers", theirs)):
        rate = one["tokens"] / one["seconds"]
        print(
            f"{name:13} BLEU {one['bleu']:5.2f}  chrF {one['chrf']:5.2f}  loss {one['loss']:.4f}  "
            f"{one['tokens']:,} tokens in {one['seconds']:.0f} s, {rate:,.0f} tok/s"
        )
    print(f"{ours['bleu'] - theirs['bleu']:+.2f} BLEU, {theirs['seconds'] / ours['seconds']:.2f}x as fast")


if __name__ == "__main__":
    main()
