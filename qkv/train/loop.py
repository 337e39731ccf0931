"""The loop: batch after batch until a run's end, with what is due between two steps."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from qkv.errors import CorruptFile
from qkv.train.faults import NotFinite, first_bad, named
from qkv.train.loader import Loader, Position
from qkv.train.objective import Feed
from qkv.train.recipe import Recipe
from qkv.train.schedule import Progress, factor
from qkv.train.step import Gradients, Stepper, fold
from qkv.train.stop import Signals, Stopped


@dataclass
class State:
    """Where a run is, after a whole number of steps. `batch`: micro-batches of the epoch that are behind it; `seconds`
    of training, evaluations apart; `best`: the metric that decides, at `best_step`, `waited` evaluations ago."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    seconds: float = 0.0
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


@dataclass
class Due:
    """What the loop calls between steps: `logged(gradients, lr factor, seconds)` after each one, `evaluate()`, which
    says whether the run should end, and `save()`."""

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
        self.evaluated = self.saved = state.step
        self._saved_at = time.monotonic()

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
            self._steps()
        if self.evaluated != self.state.step:
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
                now = time.perf_counter()
                seconds, clock = now - clock, now
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

    def _between(self) -> None:
        """Evaluation and checkpoint, where they are due."""
        step, every = self.state.step, self.recipe.eval.every
        if every is not None and step % every == 0:
            self._evaluate()
        save = self.recipe.save
        late = save.minutes is not None and time.monotonic() - self._saved_at >= 60 * save.minutes
        if (save.every is not None and step % save.every == 0) or late:
            self._save()

    def _evaluate(self) -> None:
        self.state.stopped_early = self.due.evaluate() or self.state.stopped_early
        self.evaluated = self.state.step

    def _save(self) -> None:
        with self.signals.whole():
            self.due.save()
        self.saved, self._saved_at = self.state.step, time.monotonic()

    def _why(self, feeds: list[Feed]) -> str:
        """Which batch, which module: each batch of the step once more, on this process alone."""
        import torch

        for i, feed in enumerate(feeds):
            torch.manual_seed(fold(self.recipe.seed, self.state.step, self.stepper.world.rank))
            self.stepper.learner.zero_grad(set_to_none=True)
            found = first_bad(self.stepper.learner, lambda feed=feed: self.stepper.learner(feed))  # type: ignore[misc]
            if "computed again" not in found:
                samples = named([self.due.where(sample) for sample in feed.samples])
                return f"batch {i + 1} of {len(feeds)} ({samples}): {found}. No step was taken, and nothing saved"
        return "each of its batches is finite when computed alone"
