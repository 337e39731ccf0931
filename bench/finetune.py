"""Fine-tuning by qkv beside transformers' Trainer: scores and seconds of the same recipe, run by turns.

    python -m bench.finetune --task sentiment|ner|qa [--seeds 3] [--limit N] [--order same|own]
        [--data ROOT] [--threads 2] [--json bench/results/NAME.json] [KEY=VALUE ...]

For each seed both train, by turns, each in a process of its own: qkv as `qkv train` does. Both begin with the same
weights, the new head's among them, and read the same samples: tokens, lengths and labels are qkv's. Epochs, learning
rate, warm-up, decay, weight decay, clipping and dropout are the recipe's. "same": the Trainer reads the batches that
qkv does, padded to their longest; "own": it draws its own, from the same seed, by `group_by_length`, which pads least
and is its fastest. Seconds are those of training alone, without reading data, evaluating and saving. Both models are
scored on the recipe's test records by the same code, in float32.

So that a run is a few minutes, sentiment takes 4,000 of the recipe's training records, question answering 1,500 and the
first 1,000 of its test's; NER all. `--limit` and `--test` are other numbers. A hash draws the training records.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler

from bench.machine import describe, heading, keep, pin, quiet
from bench.recipes import DATA, load

METRIC = {"sentiment": "accuracy", "ner": "span_f1", "qa": "f1"}
LIMIT = {"sentiment": 4000, "ner": None, "qa": 1500}  # training records
TEST = {"sentiment": None, "ner": None, "qa": 1000}  # test records
HELD = {"sentiment": 10_662, "ner": 3394, "qa": 19_688}  # records that `--limit` is a share of
ENGINES = ("qkv", "Trainer")


def recipe_of(args: argparse.Namespace, seed: int) -> Any:
    """The task's recipe, with what this bench changes of it."""
    said = [f"seed={seed}", f"data.root={args.data}", "eval.limit=1", "eval.samples=0", "data.test=[]"]
    limit = args.limit or LIMIT[args.task]
    if limit is not None:  # what is held out for validation isn't trained on
        held = load(args.task).data.hold_out
        test = 0.0 if held is None else held.test
        share = max(0.0, 1 - test - limit / HELD[args.task])
        by = "words" if held is None else held.by
        said += [f"data.hold_out={{ valid = {share:.4f}, test = {test}, by = '{by}' }}", "data.valid=[]"]
    return load(args.task, *said, *args.overrides)


def by_qkv(recipe: Any, out: Path, args: argparse.Namespace) -> float:
    """Train; seconds of the steps."""
    from qkv.train.run import train

    done = train(recipe, out, resume="never")
    state = json.loads((out / "checkpoints" / f"step-{done.step:08d}" / "state.json").read_text())
    return float(state["loop"]["seconds"])


def by_trainer(recipe: Any, out: Path, args: argparse.Namespace) -> float:
    """Train as `by_qkv`, from the same weights; seconds of the Trainer's own clock."""
    import transformers
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    from qkv.model import save
    from qkv.train.order import Order
    from qkv.train.parallel import World
    from qkv.train.prepare import prepare

    begun = out / "begun"
    out.mkdir(parents=True)
    prepared = prepare(recipe, out, World())
    save(prepared.model, begun)
    classes = {"sentiment": "SequenceClassification", "ner": "TokenClassification", "qa": "QuestionAnswering"}
    model = getattr(transformers, f"AutoModelFor{classes[args.task]}").from_pretrained(begun)
    tokenizer = AutoTokenizer.from_pretrained(begun)
    train, batch = recipe.train, recipe.batch
    settings = TrainingArguments(
        output_dir=str(out / "trainer"),
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=True,
        bf16=train.dtype == "bfloat16",
        per_device_train_batch_size=batch.sequences,
        num_train_epochs=train.epochs,
        learning_rate=train.lr,
        lr_scheduler_type=train.schedule.kind,
        warmup_steps=train.schedule.warmup,  # below 1: a share
        weight_decay=train.weight_decay,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        adam_epsilon=train.eps,
        max_grad_norm=train.clip,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model,
        settings,
        data_collator=_collator(args.task, tokenizer),
        train_dataset=[_example(args.task, sample) for sample in prepared.samples],
        processing_class=tokenizer,
    )
    if args.order == "same":
        order = _SameOrder(Order(prepared.samples.sizes, batch, recipe.seed))
        trainer._get_train_sampler = lambda train_dataset=None: order  # type: ignore[method-assign]
    found = trainer.train().metrics["train_runtime"]
    trainer.save_model(str(out))
    return float(found)


class _SameOrder(Sampler[int]):
    """qkv's order of samples, epoch after epoch, as a sampler."""

    def __init__(self, order: Any) -> None:
        self.order, self.epoch = order, 0

    def __len__(self) -> int:
        return sum(map(len, self.order.epoch(0)))

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return (number for batch in self.order.epoch(self.epoch - 1) for number in batch)


def _example(task: str, sample: Any) -> dict[str, Any]:
    """A sample as the Trainer reads one."""
    ids, label = sample["ids"].tolist(), sample["label"].tolist()
    example = {"input_ids": ids, "token_type_ids": sample["segments"].tolist(), "attention_mask": [1] * len(ids)}
    if task == "qa":
        return {**example, "start_positions": label[0], "end_positions": label[1]}
    return {**example, "labels": label[0] if task == "sentiment" else label}


def _collator(task: str, tokenizer: Any) -> Any:
    from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

    return (DataCollatorForTokenClassification if task == "ner" else DataCollatorWithPadding)(tokenizer)


def work(args: argparse.Namespace) -> None:
    """One run of one engine, in this process: a line of JSON on stdout."""
    pin(args.threads)
    recipe = recipe_of(args, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / args.worker
        seconds = {"qkv": by_qkv, "Trainer": by_trainer}[args.worker](recipe, out, args)
        print(json.dumps({"seconds": seconds, **_score(args, out, recipe)}))


def _score(args: argparse.Namespace, out: Path, recipe: Any) -> dict[str, Any]:
    """The task's metric of a folder's model on the test records, in per cent."""
    import torch

    from qkv.model import load as load_model
    from qkv.train.score import score_run

    whole = load(args.task).data
    tested = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": whole.test})})
    metric = METRIC[args.task]
    model = load_model(str(out), torch.float32)
    found = score_run(model, tested, "test", metrics=(metric,), limit=args.test or TEST[args.task])
    value = found.evaluation.values[metric]
    return {"score": value if args.task == "qa" else 100 * value}


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every engine's runs, one a seed, by turns."""
    runs: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    given = [arg for arg in sys.argv[1:] if arg]
    for seed in range(args.seeds):
        for engine in ENGINES if seed % 2 == 0 else ENGINES[::-1]:
            command = [sys.executable, "-m", "bench.finetune", *given, "--worker", engine, "--seed", str(seed)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{engine}, seed {seed}: ended with {done.returncode}")
            runs[engine].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"seed {seed} {engine}: {runs[engine][-1]}", file=sys.stderr)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe: train.dtype=float32")
    parser.add_argument("--task", choices=METRIC, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="training records")
    parser.add_argument("--test", type=int, help="test records")
    parser.add_argument("--order", choices=("same", "own"), default="own")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.worker is not None:
        work(args)
        return
    load_before = quiet()
    runs = measure(args)
    limit = args.limit or LIMIT[args.task]
    said = {"task": args.task, "order": args.order, "metric": METRIC[args.task], "limit": limit}
    result: dict[str, Any] = {"machine": describe(args.threads), "load": load_before, **said, "changes": args.overrides}
    result["runs"] = runs
    show(result)
    keep(result, args.json)


def show(result: dict[str, Any]) -> None:
    """The table a person reads."""
    print(heading(result))
    print(f"{result['task']}: {result['metric']}, per cent; the Trainer's batches: {result['order']}")
    means, times = {}, {}
    for engine, runs in result["runs"].items():
        scores, seconds = [run["score"] for run in runs], [run["seconds"] for run in runs]
        means[engine], times[engine] = statistics.mean(scores), statistics.median(seconds)
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        each = " ".join(f"{score:6.2f}" for score in scores)
        took = " ".join(f"{second:6.1f}" for second in seconds)
        print(
            f"{engine:8} {each}   mean {means[engine]:6.2f} sd {spread:5.2f}   {took} s, median {times[engine]:.1f} s"
        )
    ours, theirs = ENGINES
    print(f"{means[ours] - means[theirs]:+.2f} points, {times[theirs] / times[ours]:.2f}x as fast")


if __name__ == "__main__":
    main()
