"""Schedules, beside transformers'."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from transformers import optimization as theirs

from qkv.errors import ConfigError
from qkv.train.recipe import Schedule, Train
from qkv.train.schedule import Progress, check, factor

TOTAL, WARMUP = 40, 7


def of_theirs(make: Any, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule: LambdaLR = make(optimizer, **settings)
    (rate,) = schedule.lr_lambdas
    return [rate(step) for step in range(TOTAL + 1)]  # beyond it their cosine rises again


def ours(schedule: Schedule) -> list[float]:
    return [factor(schedule, Progress(step, TOTAL)) for step in range(TOTAL + 1)]


ENDS = {"num_training_steps": TOTAL}
REFERENCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "constant": (theirs.get_constant_schedule_with_warmup, {}),
    "linear": (theirs.get_linear_schedule_with_warmup, ENDS),
    "cosine": (theirs.get_cosine_schedule_with_warmup, ENDS),
    "inverse_sqrt": (theirs.get_inverse_sqrt_schedule, {}),
    "wsd": (theirs.get_wsd_schedule, {**ENDS, "num_decay_steps": 8, "decay_type": "1-sqrt"}),
}


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize("kind", REFERENCES)
def test_as_transformers_have_it(kind: str, warmup: int) -> None:
    if kind == "inverse_sqrt" and not warmup:
        with pytest.raises(ConfigError, match="needs one"):
            ours(Schedule(kind=kind))
        return
    make, settings = REFERENCES[kind]
    expected = of_theirs(make, num_warmup_steps=warmup, **settings)
    assert ours(Schedule(kind=kind, warmup=warmup)) == pytest.approx(expected, abs=1e-15)


FLOORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "linear": (theirs.get_polynomial_decay_schedule_with_warmup, {**ENDS, "lr_end": 0.1}),
    "cosine": (theirs.get_cosine_with_min_lr_schedule_with_warmup, {**ENDS, "min_lr_rate": 0.1}),
}


@pytest.mark.parametrize("kind", FLOORS)
def test_a_floor_as_transformers_have_it(kind: str) -> None:
    make, settings = FLOORS[kind]
    expected = of_theirs(make, num_warmup_steps=WARMUP, **settings)
    assert ours(Schedule(kind=kind, warmup=WARMUP, floor=0.1)) == pytest.approx(expected, abs=1e-15)


def test_a_share_of_warm_up_is_rounded_as_trainer_does() -> None:
    assert ours(Schedule(warmup=0.16)) == ours(Schedule(warmup=7))  # ceil(6.4)


def test_2017() -> None:
    """Vaswani et al. §5.3: the rate at step s is proportional to min(s^-0.5, s · warmup^-1.5)."""
    schedule = Schedule(kind="inverse_sqrt", warmup=4000)
    for step in (1, 17, 3999, 4000, 4001, 100_000):
        expected = min(step**-0.5, step * 4000**-1.5) / 4000**-0.5
        assert factor(schedule, Progress(step, 200_000)) == pytest.approx(expected)


KIND = st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"])
WARM = {"warmup": st.floats(0.01, 0.5), "floor": st.floats(0, 1)}
SHARES = st.builds(Schedule, kind=KIND, **WARM) | st.builds(
    Schedule, kind=st.just("wsd"), decay=st.floats(0, 0.5), **WARM
)


@given(SHARES, st.integers(0, 1200))
def test_bounds(schedule: Schedule, step: int) -> None:
    by_steps = factor(schedule, Progress(step, 1000))
    assert 0 <= by_steps <= 1
    if step >= 1000:
        assert by_steps >= schedule.floor
        assert (
            by_steps == pytest.approx(schedule.floor)
            or schedule.kind in ("constant", "inverse_sqrt")
            or (schedule.kind == "wsd" and not schedule.decay)
        )


@given(SHARES, st.integers(0, 1000))
def test_by_time_is_by_steps_where_all_steps_take_the_same_time(schedule: Schedule, step: int) -> None:
    whole = schedule.model_copy(update={"warmup": round(schedule.warmup * 1000)})
    shares = schedule.model_copy(update={"warmup": whole.warmup / 1000})
    by_time = factor(shares, Progress(step, None, step / 1000))
    assert by_time == pytest.approx(factor(whole, Progress(step, 1000)), abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_a_warm_up_in_steps_of_a_run_by_minutes(kind: str) -> None:
    schedule, plain = Schedule(kind=kind, warmup=10, floor=0.1), Schedule(kind=kind, floor=0.1)
    for step, share in ((0, 0.0), (5, 0.1), (10, 0.2), (50, 0.95), (60, 1.0), (61, 1.02)):
        expected = min(step / 10, 1) * factor(plain, Progress(step, None, share))
        assert factor(schedule, Progress(step, None, share)) == expected
    assert factor(schedule, Progress(60, None, 1.0)) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["constant", "inverse_sqrt"])
def test_what_has_no_end_goes_by_steps(kind: str) -> None:
    schedule = Schedule(kind=kind, warmup=10)
    for step in (0, 3, 10, 400):
        assert factor(schedule, Progress(step, None, 0.7)) == factor(schedule, Progress(step, 1000))


@pytest.mark.parametrize(
    ("settings", "progress", "named"),
    [
        ({"kind": "linear", "warmup": 40}, Progress(0, 40), "40 of 40 steps"),
        ({"kind": "cosine"}, Progress(0), "how long"),
        ({"kind": "constant", "warmup": 2.5}, Progress(0, 40), "whole number"),
        ({"kind": "wsd", "warmup": 0.6, "decay": 0.6}, Progress(0, 40), "at most 1"),
        ({"kind": "wsd", "warmup": 30, "decay": 0.5}, Progress(30, 40), r"30\) and decay \(20"),
    ],
)
def test_what_makes_no_sense(settings: dict[str, Any], progress: Progress, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        factor(Schedule(**settings), progress)


def test_shares_that_fill_the_run_survive_rounding() -> None:
    schedule = Schedule(kind="wsd", warmup=0.8, decay=0.2)
    assert [factor(schedule, Progress(step, 7)) for step in (6, 7)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("said", "total", "what"),
    [
        ({"kind": "inverse_sqrt"}, 9, "say warmup"),
        ({"kind": "inverse_sqrt"}, None, "say warmup"),
        ({"kind": "cosine", "warmup": 9}, 9, "warmup is 9 of 9 steps"),
        ({"kind": "wsd", "warmup": 5, "decay": 0.9}, 10, r"decay \(9\) exceed"),  # from the warm-up's end on
    ],
)
def test_a_schedule_is_checked_for_the_whole_run(said: dict[str, Any], total: int | None, what: str) -> None:
    train = Train.model_validate({"epochs": 1, "schedule": said})
    with pytest.raises(ConfigError, match=what):
        check(train, total)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("warmup", [0.1, 3])
@pytest.mark.parametrize("total", [None, 9])
def test_a_schedule_with_room(kind: Any, warmup: float, total: int | None) -> None:
    check(Train.model_validate({"minutes": 1, "schedule": {"kind": kind, "warmup": warmup}}), total)
