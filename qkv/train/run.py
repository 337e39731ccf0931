"""A run: `train(recipe, folder)`. It goes on where the folder's last whole checkpoint is, and leaves a folder that
`qkv.load` and transformers read, with recipe.toml, log.jsonl, a page (index.html), a curve and a card beside it."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qkv.errors import InputError
from qkv.model import Model
from qkv.train import card, checkpoint, export, parallel, recipe_file
from qkv.train.begin import with_weights
from qkv.train.build import build, facts
from qkv.train.checkpoint import CHECKPOINTS, Checkpoint, begun
from qkv.train.evaluate import Evaluation, Evaluator
from qkv.train.lock import Lock
from qkv.train.loop import Due, Loop, State
from qkv.train.peak import gemm_peak
from qkv.train.prepare import check_metrics, prepare
from qkv.train.recipe import Recipe
from qkv.train.schedule import check
from qkv.train.screen import tell
from qkv.train.step import Gradients
from qkv.train.stop import Signals, Stopped
from qkv.train.watch import Step, Watch
from qkv.write import write_text

RECIPE = "recipe.toml"


@dataclass(frozen=True)
class Done:
    """How a run ended. `values`: metrics of the weights that it leaves, by part of the data; `best_step`: whose weights
    those are, where a metric decides."""

    folder: Path
    step: int
    stopped: bool
    values: dict[str, dict[str, float]]
    best_step: int | None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def train(recipe: Recipe, out: str | Path, *, resume: str | int = "auto", allow_changed: bool = False) -> Done:
    """Train as the recipe says, in the folder `out`.

    resume: "auto": go on from the newest whole checkpoint, if there is one; "never": the folder must hold no run; a
    number: from that step. allow_changed: go on though recipe or data are not what the run began with.

    InputError: the folder is in use, can't be written, or holds another run; a number that is not finite came up
    (NotFinite). Raises besides what `prepare` and checkpoints do."""
    out = Path(out)
    world = parallel.World.from_environment()
    try:
        with Signals(raises=world.size == 1) as signals, Lock(out) if world.first else contextlib.nullcontext():
            return Run(recipe, out, world, signals, allow_changed).go(resume)
    finally:
        world.close()


class Run:
    """One process of a run."""

    def __init__(self, recipe: Recipe, out: Path, world: parallel.World, signals: Signals, allow_changed: bool) -> None:
        self.recipe, self.out, self.world, self.signals = recipe, out, world, signals
        self.allow_changed = allow_changed
        self.state = State()
        self.told: list[str] = []  # before there is a log
        self.last: Evaluation | None = None
        self.finals: dict[str, dict[str, float]] = {}

    def go(self, resume: str | int) -> Done:
        """All of it."""
        check(self.recipe.train, self.recipe.train.steps)
        parallel.together(self.world, lambda: self._claim(resume) if self.world.first else None)
        self.prepared = prepare(self.recipe, self.out, self.world)
        check_metrics(self.recipe, self.prepared.evaluator)
        self.built = build(self.recipe, self.prepared, self.world)
        self.model, self.stepper = self.built.model, self.built.stepper
        found = self._resume(resume)
        self._open_watch(found)
        try:
            stopped = self._loop()
            self._leave(stopped)
        except BaseException as error:
            self.watch.close(f"{type(error).__name__}: {error}")
            raise
        return Done(self.out, self.state.step, stopped, self.finals, self.state.best_step if self._chooses() else None)

    # --- beginning ---------------------------------------------------------------------------------------------------

    def _claim(self, resume: str | int) -> None:
        """The folder is this run's: it holds the same recipe, or none. InputError: another one."""
        path = self.out / RECIPE
        if path.exists():
            if resume == "never":
                raise InputError(f"{self.out} holds a run already: choose another folder (--out), or let it go on")
            changed = recipe_file.differences(recipe_file.load(path), self.recipe)
            if changed and begun(self.out) and not self.allow_changed:
                raise InputError(
                    f"{self.out} holds a run of another recipe: {'; '.join(changed)}. Choose another folder (--out), or"
                    " go on with the changed one by --allow-changed"
                )
        elif export.holds_model(self.out):
            raise InputError(f"{self.out} holds a model that is of no run: choose another folder (--out)")
        write_text(path, recipe_file.resolved(self.recipe))

    def _resume(self, resume: str | int) -> Checkpoint | None:
        """Take up the checkpoint that is to be gone on from. None: the run is new."""
        folder = self.out / CHECKPOINTS
        room = self.built.bytes()
        parallel.together(self.world, lambda: checkpoint.check_room(folder, room) if self.world.first else None)
        if isinstance(resume, int):
            found: Checkpoint | None = checkpoint.at(folder, resume, self.world)
        else:
            found = checkpoint.newest(folder, tell, self.world)
        if found is None:
            return None
        self.state = self.built.take(found, self.allow_changed)
        if self.world.first:
            checkpoint.set_aside(folder, found.step, tell)
        self._check_best(folder)
        self.state.wait(self.recipe.eval.patience)  # which may be another than before
        return found

    def _check_best(self, folder: Path) -> None:
        """Forget the best step where another metric decides now, or where its weights are wanted and not there."""
        state, evaluator = self.state, self.prepared.evaluator
        if state.best_step is None or evaluator is None:
            return
        if state.metric != evaluator.best[0]:
            why: str | None = f"{evaluator.best[0]} decides now"
        else:
            why = self.built.why_not(folder, state.best_step) if self._chooses() else None
        if why is not None:
            self.told.append(f"step {state.best_step}, so far the best by {state.metric}, is forgotten: {why}")
            state.forget_best()

    def _open_watch(self, found: Checkpoint | None) -> None:
        peak = gemm_peak(self.recipe.train.dtype, self.world.device) * self.world.size if self.world.first else None
        self.watch = Watch(
            self.out,
            self.recipe,
            facts(self.built, self.recipe),
            total=self.built.total,
            peak=peak,
            resumed=None if found is None else found.step,
            rank=self.world.rank,
        )
        if found is not None:
            self.watch.note(f"goes on from step {found.step}")
        for text in (*self.told, *self.prepared.notes, *self.built.order.notes, *self.model.notes):
            self.watch.note(text)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self) -> bool:
        """Whether a signal ended it."""
        due = Due(self._logged, self._evaluate, self._save, self.prepared.samples.where)
        loop = Loop(self.recipe, self.stepper, self.built.loader, self.signals, self.state, self.built.total, due)
        try:
            loop.run()
        except Stopped as stopped:
            with self.signals.whole():
                self.watch.note(f"{stopped}: stopped after step {self.state.step}, with everything saved")
                if self.state.step and loop.saved != self.state.step:
                    self._save()
            return True
        return False

    def _logged(self, found: Gradients, rate: float, seconds: float) -> None:
        state, per_epoch = self.state, max(self.built.order.count(self.state.epoch), 1)
        minutes = self.recipe.train.minutes
        self.watch.step(
            Step(
                step=state.step,
                loss=found.loss,
                grad_norm=found.norm,
                lr=self.recipe.train.lr * rate,
                tokens=found.tokens,
                seconds=seconds,
                flops=found.tokens * self.built.flops,
                epoch=state.epoch + state.batch / per_epoch,
                share=None if minutes is None else min(state.seconds / 60 / minutes, 1.0),
            )
        )

    def _evaluate(self) -> bool:
        """What the model is worth now, and whether its weights are to be kept. Stopped: a signal came meanwhile; after
        a resume it is done again."""
        evaluator = self.prepared.evaluator
        if evaluator is None:
            return False
        with self.signals.whole():
            value = parallel.gather(self.world, self._evaluated(evaluator))[0]
            if value is None:
                raise Stopped(self.signals.got or signal.SIGTERM)
            name, way = evaluator.best
            self.state.judge(name, value, max if way == "max" else min)
            self.state.wait(self.recipe.eval.patience)
            return self._chooses() and self.state.best_step == self.state.step

    def _evaluated(self, evaluator: Evaluator) -> float | None:
        """The metric that decides, on rank 0. None: on the others, or a signal came."""
        with self._as_left() as model:
            if not self.world.first:
                return None
            try:
                with self.signals.interruptible():
                    self.last = evaluator.run(model, self.stepper.learner.precision)
            except Stopped:
                return None
            self.watch.evaluated(self.state.step, self.last)
            return self.last.values[evaluator.best[0]]

    def _chooses(self) -> bool:
        """Whether the best weights are wanted, and not the last."""
        return self.recipe.eval.best is not None or self.recipe.eval.patience is not None

    @contextlib.contextmanager
    def _as_left(self) -> Iterator[Model]:
        """The model as it would be left now: with averaged weights, if there are some, and whole on rank 0. Signals
        wait until its own are back."""
        ema = self.stepper.ema
        with self.signals.whole(), contextlib.nullcontext() if ema is None else ema.swapped():
            yield self._whole()

    def _whole(self) -> Model:
        """The model, its weights not in pieces."""
        if self.world.size == 1 or self.recipe.train.parallel == "ddp":
            return self.model
        return with_weights(self.model, self.model.spec, parallel.gathered(self.model.state_dict()))

    def _save(self) -> None:
        protect = [self.state.best_step] if self._chooses() and self.state.best_step is not None else []
        self.built.save(self.out / CHECKPOINTS, self.state, self.recipe.save.keep, protect)

    # --- ending ------------------------------------------------------------------------------------------------------

    def _leave(self, stopped: bool) -> None:
        """The model in the run's folder, of the best weights where a metric decides, and the run's papers."""
        if self.stepper.skipped:
            self.watch.note(f"{self.stepper.skipped} steps were not taken: their float16 gradients overflowed")
        if not stopped:
            self._take_best()
        left = False
        with self._as_left() as model:
            if self.world.first:
                left = self.state.step > 0 and export.leave(model, self.out, self.watch.note)
                with contextlib.nullcontext() if stopped else self.signals.interruptible():
                    self.finals = {} if stopped else self._finals(model)
        self.watch.close("stopped by a signal" if stopped else "finished")
        if self.world.first and self.state.step:
            with self.signals.whole():
                export.papers(self.out, self.recipe, self._about(left), tell)

    def _finals(self, model: Model) -> dict[str, dict[str, float]]:
        """What the weights that are left are worth, by part of the data."""
        finals = {}
        if self.prepared.evaluator is not None:
            other = self._chooses() and self.state.best_step != self.state.step
            if other or self.last is None:
                self.last = self.prepared.evaluator.run(model, self.stepper.learner.precision)
            finals["valid"] = dict(self.last.values)
        if self.prepared.test is not None:
            finals["test"] = dict(self.prepared.test.run(model, self.stepper.learner.precision).values)
        for part, values in finals.items():
            self.watch.note(f"{part}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return finals

    def _about(self, left: bool) -> card.About:
        parameters = dict(self.model.named_parameters())
        return card.About(
            self.model.spec,
            parameters=sum(p.numel() for p in parameters.values()),
            trained=sum(p.numel() for p in parameters.values() if p.requires_grad),
            finals=self.finals,
            records={"train": self.prepared.samples.counts["records"]},
            best_step=self.state.best_step if self._chooses() else None,
            commit=None if self.model.source is None else self.model.source.revision,
            transformers=left,
        )

    def _take_best(self) -> None:
        best = self.state.best_step
        if not self._chooses() or best is None or best == self.state.step:
            return
        self.built.take_weights(checkpoint.at(self.out / CHECKPOINTS, best, self.world))
        self.watch.note(f"the model has the weights of step {best}, the best by {self.state.metric}")
