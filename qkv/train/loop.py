"""The loop: batch after batch until a run's end, with what is due between two steps."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from qkv.errors import CorruptFile
from qkv.train.faults import NotFinite, first_bad, named
from qkv.train.loader import Loader, Position
from qkv.train.objective import Feed
from qkv.train.parallel import gather, sum_over
from qkv.train.recipe import Recipe
from qkv.train.schedule import Progress, factor
from qkv.train.step import Gradients, Stepper, fold
from qkv.train.stop import Signals, Stopped


@dataclass
class State:
    """Where a run is, after a whole number of steps. `batch`: micro-batches of the epoch that are behind it; `seconds`
    of training, evaluations apart; `evaluated`: the step of the last one; `best`: the value of the metric that decides
    (`metric`) at `best_step`, `waited` evaluations ago."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    metric: str | None = None
    best: float | None = None
    best_step: int | None = None
    waited: int = 0
    stopped_early: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "State":
        """CorruptFile: other names."""
        if data.keys() != {f.name for f in fields(cls)}:
            raise CorruptFile(f"a checkpoint's state has {', '.join(sorted(data))}: it is of another version of qkv")
        return cls(**data)

    def judge(self, metric: str, value: float, better: Callable[[float, float], float]) -> None:
        """Take in what the weights of now are worth. `better`: max or min."""
        self.evaluated, self.metric = self.step, metric
        if self.best is None or (value != self.best and better(value, self.best) == value):
            self.best, self.best_step, self.waited = value, self.step, 0
        else:
            self.waited += 1

    def forget_best(self) -> None:
        """None has been judged yet, not even the weights of now."""
        self.metric, self.best, self.best_step = None, None, None
        self.evaluated = self.waited = 0

    def wait(self, patience: int | None) -> None:
        """Whether the run ends early, after so many evaluations without a better one."""
        self.stopped_early = patience is not None and self.waited >= patience


@dataclass
class Due:
    """What the loop calls between steps: `logged(gradients, lr factor, seconds)` after each one, `evaluate()`, which
    tells the state what it found, and says whether these weights are to be kept, and `save()`. `where`: of a sample."""

    logged: Callable[[Gradients, float, float], None]
    evaluate: Callable[[], bool]
    save: Callable[[], None]
    where: Callable[[int], str]


class Loop:
    """Steps until `total` of them, or until the recipe's minutes are over."""

    def __init__(
        self,
        recipe: Recipe,
        stepper: Stepper,
        loader: Loader,
        signals: Signals,
        state: State,
        total: int | None,
        due: Due,
    ) -> None:
        self.recipe, self.stepper, self.loader, self.signals = recipe, stepper, loader, signals
        self.state, self.total, self.due = state, total, due
        self.saved = state.step
        self._saved_at, self._late = time.monotonic(), False

    def progress(self) -> Progress:
        """How far the run is."""
        minutes = self.recipe.train.minutes
        share = None if minutes is None else min(self.state.seconds / (60 * minutes), 1.0)
        return Progress(self.state.step, self.total, share)

    def finished(self) -> bool:
        """Whether no step is left."""
        progress = self.progress()
        over = progress.step >= self.total if self.total is not None else (progress.share or 0.0) >= 1.0
        return over or self.state.stopped_early

    def run(self) -> None:
        """All steps that are left; Stopped where a signal came between them, NotFinite at a bad batch."""
        if not self.finished():
            self._between()  # a signal may have come before the evaluation of the last step
        if not self.finished():
            self._steps()
        if self.state.evaluated != self.state.step:
            self._evaluate()
        if self.saved != self.state.step:
            self._save()

    def _steps(self) -> None:
        steps = self.loader.steps(Position(self.state.epoch, self.state.batch))
        with contextlib.closing(steps):  # its workers end with it
            self._each(steps)

    def _each(self, steps: Iterator[tuple[list[Feed], Position]]) -> None:
        clock = time.perf_counter()
        for feeds, after in steps:
            gradients = self._gradients(feeds)
            with self.signals.whole():
                rate = factor(self.recipe.train.schedule, self.progress())
                self.stepper.move(rate)
                seconds = self._seconds(clock)
                self._moved(gradients, after, seconds)
                self.due.logged(gradients, rate, seconds)
            if self.finished():
                return
            self._between()
            if self.state.stopped_early:
                return
            clock = time.perf_counter()

    def _gradients(self, feeds: list[Feed]) -> Gradients:
        try:
            found = self.stepper.gradients(feeds, self.state.step, stop=self.signals.got is not None)
        except NotFinite as error:
            raise NotFinite(f"step {self.state.step + 1}: {error}; {self._why(feeds)}") from None
        if found.stop:
            raise Stopped(self.signals.got or 15)
        return found

    def _moved(self, gradients: Gradients, after: Position, seconds: float) -> None:
        self.state.step += 1
        self.state.epoch, self.state.batch = after.epoch, after.batch
        self.state.tokens += gradients.tokens
        self.state.seconds += seconds

    def _seconds(self, since: float) -> float:
        """Of this step; and whether a checkpoint is due by time. By rank 0's clock, so that all ranks do the same."""
        minutes, world = self.recipe.save.minutes, self.stepper.world
        late = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        told = torch.tensor([time.perf_counter() - since, late], dtype=torch.float64)
        seconds, late = sum_over(world, told if world.first else torch.zeros_like(told)).tolist()
        self._late = bool(late)
        return float(seconds)

    def _between(self) -> None:
        """Evaluation and checkpoint, where they are due and not done."""
        step, every, save = self.state.step, self.recipe.eval.every, self.recipe.save.every
        if every is not None and step % every == 0 and self.state.evaluated != step:
            self._evaluate()
        if ((save is not None and step % save == 0) or self._late) and self.saved != step:
            self._save()

    def _evaluate(self) -> None:
        if self.due.evaluate():
            self._save()

    def _save(self) -> None:
        with self.signals.whole():
            self.due.save()
        self.saved, self._saved_at, self._late = self.state.step, time.monotonic(), False

    def _why(self, feeds: list[Feed]) -> str:
        """Which batch, which module: each batch of the step once more, with the same random numbers, by all ranks."""
        learner, world = self.stepper.learner, self.stepper.world
        torch.manual_seed(fold(self.recipe.seed, self.state.step, world.rank))
        own: list[tuple[bool, str]] = []
        for i, feed in enumerate(feeds):
            learner.zero_grad(set_to_none=True)
            found = first_bad(learner, lambda feed=feed: learner(feed))  # type: ignore[misc]
            if found is not None:
                rank = f" of rank {world.rank}" if world.size > 1 else ""
                samples = named([self.due.where(sample) for sample in feed.samples])
                own.append((found[0], f"batch {i + 1} of {len(feeds)}{rank} ({samples}): {found[1]}"))
        told = [(not ahead, text) for each in gather(world, own) for ahead, text in each]
        why = min(told, key=lambda one: one[0])[1] if told else "each of its batches is finite when computed alone"
        return f"{why}. No step was taken, and nothing saved"
