"""What is told of a run while it runs: log.jsonl always, a bar or plain lines on standard error, TensorBoard if asked.

Nothing here can stop a run: a tracker that fails is reported once and let go; the log, reported once, goes on as soon
as it can be written again.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from qkv.errors import InputError
from qkv.train import log
from qkv.train.log import Line, Log
from qkv.train.recipe import Recipe
from qkv.train.recipe_file import digest
from qkv.train.screen import Screen, tell

SCREEN = "the screen"
PACKAGES = ("qkv", "torch", "numpy", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Step:
    """One optimizer step. `step`: its number, from 1; `tokens`, `seconds`, `flops`: its own; `share` of the run that is
    over, 0 to 1 (None: of the total that the watch knows)."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    flops: float
    epoch: float
    share: float | None = None


class Evaluated(Protocol):
    """An evaluation's outcome."""

    @property
    def values(self) -> Mapping[str, float]:
        """Metrics by name."""

    @property
    def samples(self) -> Sequence[Any]:
        """Predictions: dataclasses, mappings or texts."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def said(self) -> Mapping[str, str]:
        """How a metric was counted, where that needs saying (sacrebleu's signatures, …)."""


def _same(line: Line) -> tuple[str, str]:
    """What two lines of one step have in common if they say the same."""
    return line["kind"], line.get("text", "")


class Tracker(Protocol):
    """Is given each line of the log."""

    def record(self, line: Line) -> None:
        """Take one in."""

    def close(self) -> None:
        """That was all."""


class Watch:
    """Trackers of a run, and what is drawn of it.

    facts: of this run for the log's first line: parameters, commits, fingerprints. total: steps in all (None: not
    known). peak: FLOP/s of this machine's products (`peak.gemm_peak`); None: no MFU is told. resumed: the step that
    the run goes on from: later lines of an existing log are moved aside. None: the run is new, and so is its log.
    rank: of several processes only 0 writes and draws."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        facts: Mapping[str, Any] | None = None,
        *,
        total: int | None = None,
        peak: float | None = None,
        resumed: int | None = None,
        rank: int = 0,
    ) -> None:
        self.recipe, self.total, self.peak = recipe, total, peak
        self._at = self._resumed = resumed or 0
        self._pending: list[Step] = []
        self._failed: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        self._screen = Screen(total) if rank == 0 else None
        self._kept: set[tuple[str, str]] = set()
        aside = self._open(folder, resumed) if rank == 0 else None
        self._record({"kind": "run", "step": self._at, **reproducibility(recipe), **(facts or {})})
        if aside is not None:
            what = "the log of an earlier run is" if resumed is None else f"log lines beyond step {resumed} are"
            self.note(f"{what} in {aside.name} now")

    def step(self, step: Step) -> None:
        """After each optimizer step."""
        self._at = step.step
        self._pending.append(step)
        if (screen := self._screen) is not None:
            self._try(SCREEN, lambda: screen.moved(step, self._rates([step])))
        if step.step == 1 or step.step % self.recipe.watch.log_every == 0:
            self._flush()

    def evaluated(self, step: int, evaluation: Evaluated) -> None:
        """After each evaluation. One of a step that the log has already (before the run was resumed) isn't repeated."""
        self._record(
            {
                "kind": "evaluation",
                "step": step,
                "values": dict(evaluation.values),
                "seconds": evaluation.seconds,
                "said": dict(evaluation.said),
                "samples": list(evaluation.samples),
            }
        )

    def note(self, text: str) -> None:
        """Something that a person should know."""
        self._record({"kind": "note", "step": self._at, "text": text})

    def close(self, why: str = "finished") -> None:
        """The run's end, and why: the log's last line."""
        self._flush()
        self._record({"kind": "end", "step": self._at, "why": why})
        for name, tracker in list(self._trackers.items()):
            self._try(name, tracker.close)
        self._trackers.clear()
        self._screen = None

    def _open(self, folder: Path, resumed: int | None) -> Path | None:
        """Make the trackers. Where lines of an existing log went."""
        assert self._screen is not None
        self._trackers[SCREEN] = self._screen
        aside: Path | None = None

        def start() -> None:
            nonlocal aside
            aside = log.cut(folder, -1 if resumed is None else resumed)
            if (folder / log.NAME).exists():
                history = log.read(folder)
                self._kept = {_same(line) for line in history.evaluations + history.notes if line["step"] == resumed}
            self._trackers["the log"] = Log(folder)

        self._try(log.NAME, start)
        if self.recipe.watch.tensorboard:
            self._try("TensorBoard", lambda: self._trackers.update(TensorBoard=TensorBoard(folder, resumed)))
        return aside

    def _flush(self) -> None:
        """One line for all steps since the last: the last one's loss, and rates over all."""
        if not self._pending:
            return
        last = self._pending[-1]
        line = {
            "kind": "step", "step": last.step, "loss": last.loss, "grad_norm": last.grad_norm, "lr": last.lr,
            "epoch": last.epoch, **self._rates(self._pending), "memory": log.memory(),
        }  # fmt: skip
        self._pending = []
        self._record(line)

    def _rates(self, steps: Sequence[Step]) -> dict[str, Any]:
        tokens, seconds = sum(s.tokens for s in steps), sum(s.seconds for s in steps)
        rates: dict[str, Any] = {"tokens": tokens, "seconds": round(seconds, 6)}
        if seconds > 0:
            rates["tokens_per_second"] = round(tokens / seconds, 1)
            if self.peak:
                rates["mfu"] = round(sum(s.flops for s in steps) / seconds / self.peak, 4)
        return rates

    def _record(self, line: Line) -> None:
        again = line["step"] == self._resumed and _same(line) in self._kept
        for name, tracker in list(self._trackers.items()):
            if not (again and tracker is not self._screen):
                self._try(name, lambda tracker=tracker: tracker.record(line))  # type: ignore[misc]

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker does: the run is worth more
            lasting = isinstance(self._trackers.get(name), Log)
            if not lasting:
                self._trackers.pop(name, None)
                self._screen = None if name == SCREEN else self._screen
            if name not in self._failed:
                self._failed.add(name)
                after = "goes on, and what can't be written is lost" if lasting else "goes on without it"
                tell(f"{name}: {error or type(error).__name__}; the run {after}")


def reproducibility(recipe: Recipe) -> dict[str, Any]:
    """What a run must be repeated with: versions, machine, seed, the resolved recipe's digest."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    machine: dict[str, Any] = {
        "system": platform.platform(), "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {
        "name": recipe.name, "seed": recipe.seed, "recipe": digest(recipe), "versions": versions, "machine": machine
    }  # fmt: skip


class TensorBoard:
    """Events in the run's folder: `tensorboard --logdir RUN`. Steps that a resumed run does again replace the old."""

    def __init__(self, folder: Path, resumed: int | None) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            raise InputError("watch.tensorboard needs tensorboard: pip install 'qkv[train]'") from error
        purge = None if resumed is None else resumed + 1
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def record(self, line: Line) -> None:
        """Its numbers as scalars, predictions and notes as texts."""
        if line["kind"] == "step":
            self._scalars("train", line, line["step"])
        elif line["kind"] == "evaluation":
            self._scalars("valid", line["values"], line["step"])
            for i, sample in enumerate(line["samples"]):
                self._writer.add_text(f"sample {i + 1}", f"    {log.plain(sample)}", line["step"])
        elif line["kind"] == "note":
            self._writer.add_text("note", line["text"], line["step"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{group}/{name}", value, step)
