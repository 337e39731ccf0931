"""What masked words teach, what new masks each time are worth, and what label smoothing does: qkv against itself.

    python -m bench.masked pretrained [--seeds 3] [--data ROOT] [--threads 2] [--json bench/results/NAME.json]
    python -m bench.masked masks [--seeds 3] …
    python -m bench.masked smoothing [--seeds 1] …

pretrained: recipes/mlm.toml once, then mlm-finetune.toml beside mlm-scratch.toml for each seed: the same model and the
same thousand labels, with and without what the masked words taught.
masks: a model of masked words over many epochs of few texts, its masks drawn anew each time (RoBERTa, arXiv 1907.11692,
§4.1) or once a text. The loss is of held-out texts, with the same masks for both.
smoothing: recipes/translate.toml, smaller and shorter, with label smoothing of 0 and 0.1 (arXiv 1706.03762, §5.4): loss
of the test's tokens, counted without smoothing, and BLEU; and recipes/sentiment.toml on few labels, accuracy.
Every run is one of `qkv train`, in a process of its own. KEY=VALUE are changes of mlm.toml or translate.toml.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import describe, heading, keep, quiet
from bench.recipes import DATA, RECIPES, merged

Values = dict[str, float]
Table = dict[str, list[Values]]  # of each side, one run a seed
FEW = "data.hold_out={ valid = 0.5, test = 0.3, by = 'text' }"  # of `sentiment`: about 2,100 labels

SMALL = [  # a tenth of translate.toml, for minutes
    "model.config.d_model=128",
    "model.config.encoder_layers=2",
    "model.config.decoder_layers=2",
    "model.config.encoder_attention_heads=4",
    "model.config.decoder_attention_heads=4",
    "model.config.encoder_ffn_dim=512",
    "model.config.decoder_ffn_dim=512",
    "batch.tokens=2048",
    "train.steps=2000",
]


class Runs:
    """`qkv train` again and again, each into a folder of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder

    def __call__(self, recipe: str, name: str, *said: str) -> dict[str, Values]:
        """Metrics by part of the data. Exits where the run fails."""
        threads = str(self.args.threads)
        command = [sys.executable, "-m", "qkv", "train", str(RECIPES / f"{recipe}.toml")]
        command += [*merged(f"data.root={self.args.data}", *said), "--out", str(self.folder / name), "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{name}: ended with {done.returncode}")
        values: dict[str, Values] = json.loads(done.stdout)["values"]
        print(f"{name}: {values}", file=sys.stderr)
        return values


def pretrained(runs: Runs) -> Table:
    """Accuracy on the test's sentences, with and without pre-training."""
    runs("mlm", "mlm", *runs.args.overrides)
    first = runs.folder / "mlm"
    shape = [one for one in runs.args.overrides if one.startswith("model.config.")]
    found: Table = {"pre-trained": [], "from scratch": []}
    for seed in range(runs.args.seeds):
        said = [f"seed={seed}", "eval.limit=1", "eval.samples=0"]
        with_ = runs("mlm-finetune", f"finetune-{seed}", f"model.from={first}", *said)
        without = runs("mlm-scratch", f"scratch-{seed}", f"tokenizer.from={first}", *said, *shape)
        for side, values in (("pre-trained", with_), ("from scratch", without)):
            found[side].append({"accuracy": 100 * values["test"]["accuracy"]})
    return found


def masks(runs: Runs) -> Table:
    """The held-out loss of masked words."""
    small = ["data.train=['sentiment_pang_lee/movie_reviews.zip!movie_reviews/pos/cv0*.txt']", "tokenizer.vocab=4000"]
    small += ["data.hold_out={ valid = 0.2, by = 'text' }", "batch.sequences=8", "train.epochs=40", "eval.samples=0"]
    found: Table = {"dynamic": [], "static": []}
    for seed in range(runs.args.seeds):
        for side, said in (("dynamic", "true"), ("static", "false")):
            name = f"{side}-{seed}"
            runs("mlm", name, *small, f"seed={seed}", f"objective.dynamic={said}", *runs.args.overrides)
            found[side].append({"loss": _held_out_loss(runs.folder / name)})
    return found


def _held_out_loss(run: Path) -> float:
    """Of a run's validation texts, the masks drawn as for a dynamic run of seed 0."""
    import torch

    from qkv.model import load
    from qkv.train import recipe_file
    from qkv.train.score import score_run

    recipe = recipe_file.load(run / "recipe.toml", ["seed=0", "objective.dynamic=true"])
    return score_run(load(str(run), torch.float32), recipe, "valid", metrics=("loss",)).evaluation.values["loss"]


def smoothing(runs: Runs) -> Table:
    """Translation and sentiment, with and without."""
    found: Table = {"ε = 0": [], "ε = 0.1": []}
    for seed in range(runs.args.seeds):
        for side, rate in (("ε = 0", 0.0), ("ε = 0.1", 0.1)):
            said = [f"seed={seed}", f"objective.smoothing={rate}", "eval.samples=0"]
            short = [*SMALL, "eval.every=none", "eval.limit=1", *runs.args.overrides]
            translated = runs("translate", f"translate-{rate}-{seed}", *said, *short)["test"]
            judged = runs("sentiment", f"sentiment-{rate}-{seed}", *said, FEW, "eval.limit=1")["test"]
            found[side].append(
                {
                    "translation's loss": translated["loss"],
                    "BLEU": translated["bleu"],
                    "sentiment's loss": judged["loss"],
                    "accuracy": 100 * judged["accuracy"],
                }
            )
    return found


WHAT: dict[str, Callable[[Runs], Table]] = {"pretrained": pretrained, "masks": masks, "smoothing": smoothing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="the folder of the runs (a temporary one, if not given)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_intermixed_args()
    load_before = quiet()
    with tempfile.TemporaryDirectory() as folder:
        found = WHAT[args.what](Runs(args, args.keep or Path(folder)))
    said = {"what": args.what, "changes": args.overrides}
    result = {"machine": describe(args.threads), "load": load_before, **said, "runs": found}
    show(result)
    keep(result, args.json)


def show(result: dict[str, Any]) -> None:
    """The table a person reads."""
    print(heading(result))
    sides: Table = result["runs"]
    for metric in next(iter(sides.values()))[0]:
        means = []
        for side, runs in sides.items():
            values = [run[metric] for run in runs]
            means.append(statistics.mean(values))
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            each = " ".join(f"{value:8.3f}" for value in values)
            print(f"{metric:20} {side:13} {each}   mean {means[-1]:8.3f} sd {spread:.3f}")
        print(f"{metric:20} {means[0] - means[1]:+.3f}")


if __name__ == "__main__":
    main()
