"""How good a model is at an objective: its loss on records that it didn't learn from, and what its predictions are
worth.

Losses are sums over all targets divided by their number, without dropout and label smoothing, with the same masks each
time. Predictions are made as `qkv predict` and `qkv generate` make them.
"""

import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch

from qkv.errors import ConfigError, InputError, TokenizerError
from qkv.nn.modes import evaluating
from qkv.nn.stack import Transformer
from qkv.train import metrics, recipe
from qkv.train.loader import Loader
from qkv.train.measures import Measures, measures_of
from qkv.train.objective import Feed, Objective, Sample
from qkv.train.order import Order
from qkv.train.predictions import Asked, Shown
from qkv.train.records import Bad, Placed
from qkv.train.shards import Shards, cut

BUDGET = 4096  # tokens a batch


@dataclass(frozen=True)
class Evaluation:
    """values: the metrics by name. samples: some inputs with what is right and what was predicted. seconds: how long it
    took. said: how a metric was counted, where that needs saying (sacrebleu's signatures, …)."""

    values: dict[str, float]
    samples: list[Shown]
    seconds: float
    said: dict[str, str] = field(default_factory=dict)


class Evaluator:
    """Evaluates models on the same records again and again. They are encoded once, and kept in memory."""

    def __init__(
        self,
        settings: recipe.Evaluate,
        objective: Objective,
        records: Iterable[Placed],
        bad: Bad | None = None,
        *,
        batch: recipe.BatchOf | None = None,
        feeds: Callable[[], Iterable[Feed]] | None = None,
        seed: int = 0,
        budget: int = BUDGET,
    ) -> None:
        """`objective`: the run's; a copy without smoothing is what computes. `bad`: hears of records that can't be used
        (None: the first is an error). `batch`: as in training, for packing; its size doesn't change what comes out but
        for `contrast`. `feeds`: batches of that copy made elsewhere, in place of those made here, which have at most
        `budget` tokens.

        ConfigError: a metric that the objective hasn't. InputError: no record, a bad one, no package that counts
        a metric."""
        plain = objective.settings.model_copy(update={"smoothing": 0.0})
        self.objective = type(objective)(plain, objective.spec, objective.tokenizer, objective.length)
        self.objective.packed = objective.packed
        self.settings, self.seed, self.budget, self._feeds = settings, seed, budget, feeds
        self.records, self.samples = self._encoded(records, Bad() if bad is None else bad)
        self.measures: Measures = measures_of(self.objective, self.records)
        self.wanted = self._wanted()
        metrics.check_installed(self.wanted)
        self.batch = batch

    @property
    def best(self) -> tuple[str, metrics.Better]:
        """The metric that decides which weights are kept, and which way is better."""
        name = self.settings.best or (self.measures.best if self.measures.best in self.wanted else self.wanted[0])
        return name, metrics.better(name)

    def run(
        self, model: Transformer, precision: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Evaluation:
        """`precision`: autocast, as in training, where that is wanted. The model's mode and gradients, and the global
        random state, are as before. InputError: a loss that is not finite."""
        began = time.perf_counter()
        values: dict[str, float] = {}
        said: dict[str, str] = {}
        shown: list[Shown] = []
        with torch.no_grad(), evaluating(model), precision():
            if set(self.wanted) & set(self.measures.losses):
                values |= self._losses(model)
            predicted = set(self.wanted) & set(self.measures.predicted)
            some = len(self.records) if predicted else min(self.settings.samples, len(self.records))
            if some and self.measures.predict is not None:
                asked = Asked(
                    model, self.objective, self.records[:some], self.samples[:some], tuple(predicted), self.budget
                )
                found = self.measures.predict(asked)
                values |= found.values if predicted else {}
                said |= found.said
                shown = found.shown[: self.settings.samples]
        kept = {name: values[name] for name in self.wanted if name in values}
        return Evaluation(kept, shown, time.perf_counter() - began, {n: s for n, s in said.items() if n in kept})

    def feeds(self) -> Iterable[Feed]:
        """All records as batches, each time the same."""
        return self._feeds() if self._feeds is not None else self._own_feeds()

    def _losses(self, model: Transformer) -> dict[str, float]:
        total, targets = 0.0, 0
        for feed in self.feeds():
            total += float(self.objective.loss(model, feed))
            targets += feed.targets
        if not targets:
            raise InputError("the records to evaluate on have no target: there is nothing to predict")
        if not np.isfinite(total):
            raise InputError(f"the loss on the records to evaluate on is {total}")
        return {"loss": total / targets, "perplexity": metrics.perplexity(total, targets)}

    def _own_feeds(self) -> Iterable[Feed]:
        held = _Held(self.records, self.samples, self.objective)
        if self.batch is None or self.batch.packing == "none":
            batch = recipe.BatchOf(tokens=max(self.budget, int(held.sizes.max())))
        else:
            most = max(self.budget, self.batch.length or 0)
            batch = self.batch.model_copy(update={"sequences": None, "tokens": most})
        order = Order(held.sizes, batch, self.seed, shuffle=False)
        return Loader(cast(Shards, held), order, self.objective, self.seed).once()

    def _encoded(self, records: Iterable[Placed], bad: Bad) -> tuple[list[Placed], list[list[Sample]]]:
        kept: list[Placed] = []
        samples: list[list[Sample]] = []
        for placed in records:
            try:
                found = self.objective.encode(placed.record)
            except (InputError, TokenizerError) as error:
                bad.report(placed.where, str(error))
                continue
            if found:  # else it is too long, and dropped: the objective counts them
                kept.append(placed)
                samples.append(found)
            if len(kept) == self.settings.limit:
                break
        if not kept:
            raise InputError("there is no record to evaluate on")
        return kept, samples

    def _wanted(self) -> tuple[str, ...]:
        known = self.measures.names
        named = self.measures.usual if self.settings.metrics is None else self.settings.metrics
        wanted = dict.fromkeys([*named, *([] if self.settings.best is None else [self.settings.best])])
        for name in wanted:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                guess = f"; did you mean {near[0]}?" if near else f": it has {', '.join(known)}"
                raise ConfigError(f"the objective {self.objective.settings.kind!r} has no metric {name!r}{guess}")
        if not wanted:
            raise ConfigError("eval.metrics names no metric")
        return tuple(wanted)


class _Held:
    """Samples in memory, in the place of shards."""

    def __init__(self, records: Sequence[Placed], samples: Sequence[Sequence[Sample]], objective: Objective) -> None:
        self._samples = [sample for own in samples for sample in own]
        self._places = [placed.where for placed, own in zip(records, samples, strict=True) for _ in own]
        self.sizes = np.asarray([objective.size(sample) for sample in self._samples], np.int32)

    def __getitem__(self, i: int) -> Sample:
        return self._samples[i]

    def cut(self, i: int, start: int, stop: int) -> Sample:
        return cut(self._samples[i], int(self.sizes[i]), start, stop)

    def where(self, i: int) -> str:
        return self._places[i]
