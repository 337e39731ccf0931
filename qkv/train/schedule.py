"""The learning rate over a run, as a factor on what the recipe says. A pure function of where the run is: nothing of it
has to be saved, and a resumed run has the rates it would have had.

`step` counts the optimizer steps that are behind: 0 at the first one, as transformers' schedules have it (so with a
warm-up the first step has the rate 0).

A run by minutes doesn't know how many steps it will have. What needs a total then goes by the share of time that is
over. Time isn't repeatable: such a run goes on from its share after a restart, but two of them differ in their rates.
"""

import math
from dataclasses import dataclass

from qkv.errors import ConfigError
from qkv.train.recipe import Schedule, Train


@dataclass(frozen=True)
class Progress:
    """Where a run is: `step` steps are behind, of `total`; or (total None) of the time `share` is over, 0 to 1."""

    step: int
    total: int | None = None
    share: float | None = None


def factor(schedule: Schedule, progress: Progress) -> float:
    """What the learning rate is multiplied by, 0 to 1. With x where the run is, w where the warm-up ends, T the end
    (all in steps, or in shares of time) and r = (x − w) / (T − w):

    - up to w: x / w
    - constant: 1
    - linear: 1 − r
    - cosine: (1 + cos πr) / 2 (arXiv 1608.03983)
    - inverse_sqrt: √(w / x) (arXiv 1706.03762, §5.3)
    - wsd: 1, and over the last `decay` share 1 − √s, with s from 0 to 1 (arXiv 2404.06395; the root: 2405.18392, §3)

    where linear, cosine and wsd end at `floor` instead of 0, and inverse_sqrt doesn't fall below it. A run by minutes
    with a warm-up in steps: x / w by steps, times the schedule without warm-up by time.

    ConfigError: an inverse_sqrt without warm-up, a warm-up that leaves nothing of the run."""
    _check(schedule)
    x, end = _place(schedule, progress)
    steps = schedule.warmup >= 1
    if steps and progress.total is None and end is not None:
        return min(progress.step / schedule.warmup, 1.0) * _after(schedule, x, 0.0, end)
    warmup = _warmup(schedule, progress, end)
    if x < warmup:
        return x / warmup
    return _after(schedule, x, warmup, end)


def check(train: Train, total: int | None) -> None:
    """Before a run of so many steps (None: by minutes, or not known yet): does its schedule have a factor for the first
    and for the last? ConfigError: as `factor`."""
    for at, share in ((0, 0.0), (total or 0, 1.0)):
        factor(train.schedule, Progress(at, total, share))


def _check(schedule: Schedule) -> None:
    if schedule.kind == "inverse_sqrt" and schedule.warmup == 0:
        raise ConfigError("train.schedule: inverse_sqrt falls from its warm-up on, and needs one: say warmup")
    if schedule.warmup >= 1 and schedule.warmup != int(schedule.warmup):
        raise ConfigError(f"train.schedule.warmup is {schedule.warmup}: a whole number of steps, or a share below 1")
    if schedule.kind == "wsd" and schedule.warmup < 1 and schedule.warmup + schedule.decay > 1:
        raise ConfigError("train.schedule: warmup and decay are shares of one run: together at most 1")


def _place(schedule: Schedule, progress: Progress) -> tuple[float, float | None]:
    """Where the run is and where it ends, in one unit; None: that doesn't matter."""
    if progress.total is not None:
        return progress.step, progress.total
    by_steps = schedule.kind in ("constant", "inverse_sqrt") and (schedule.warmup >= 1 or schedule.warmup == 0)
    if by_steps:
        return progress.step, None
    if progress.share is None:
        raise ConfigError(f"train.schedule {schedule.kind!r} needs to know how long the run is")
    return progress.share, 1.0


def _warmup(schedule: Schedule, progress: Progress, end: float | None) -> float:
    """Where the warm-up ends, in the unit of `_place`."""
    warmup: float = schedule.warmup
    if progress.total is not None and warmup < 1:
        warmup = math.ceil(progress.total * warmup)
    if end is not None and warmup >= end and schedule.kind in ("linear", "cosine", "wsd"):
        raise ConfigError(f"train.schedule.warmup is {warmup:g} of {end:g} steps: it leaves nothing of the run")
    return warmup


def _after(schedule: Schedule, x: float, warmup: float, end: float | None) -> float:
    """The factor from the end of the warm-up on."""
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "inverse_sqrt":
        return max(math.sqrt(warmup / x), schedule.floor)
    assert end is not None
    left = _left(schedule, x, warmup, end)
    return left * (1.0 - schedule.floor) + schedule.floor


def _left(schedule: Schedule, x: float, warmup: float, end: float) -> float:
    """Of what falls from 1 to 0 between `warmup` and `end`: how much is left at x."""
    if schedule.kind == "linear":
        return max(0.0, (end - x) / (end - warmup))
    if schedule.kind == "cosine":
        gone = min((x - warmup) / (end - warmup), 1.0)
        return 0.5 * (1.0 + math.cos(math.pi * gone))
    decay = end * schedule.decay
    if warmup + decay >= end + 1:  # up to a step: a warm-up's share is rounded up
        raise ConfigError(f"train.schedule: warm-up ({warmup:g}) and decay ({decay:g}) exceed the run's {end:g} steps")
    decay = min(decay, end - warmup)
    return 1.0 if x <= end - decay else 1.0 - math.sqrt(min((x - (end - decay)) / decay, 1.0))
