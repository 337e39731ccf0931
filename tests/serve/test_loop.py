"""The loop's own: what it does while idle, and what it does not let break it. (The rest is in test_engine.py.)"""

import time

import pytest

from qkv.errors import InputError
from qkv.serve.engine import Engine
from qkv.serve.loop import IDLE
from tests.serve.driving import engine, model, submit, waited
from tests.serve.test_engine import until


def test_pages_are_counted_once_it_is_idle() -> None:
    with engine() as made:
        until(lambda: made.ready)
        counted = []
        batcher = made._batcher
        assert batcher is not None
        check = batcher.check
        batcher.check = lambda: counted.append(time.monotonic()) or check()  # type: ignore[method-assign, func-returns-value]
        waited(submit(made, "a", [1, 2]))
        until(lambda: len(counted) == 1)
        time.sleep(2.5 * IDLE)
        assert len(counted) == 1, "once, until there was something to do again"
        waited(submit(made, "b", [1, 2]))
        until(lambda: len(counted) == 2)


def test_lost_pages_are_found_and_made_good() -> None:
    with engine() as made:
        waited(submit(made, "a", [1, 2]))
        assert made._batcher is not None
        made.call(lambda model: made._batcher.scheduler.pages.take(3)).result(10)  # type: ignore[union-attr]
        until(lambda: made.state().faults == 1)
        waited(submit(made, "b", [1, 2]))
        assert made.state().used == 0


def test_what_was_queued_when_it_closes_is_done_or_cancelled() -> None:
    """None is without an end, though some come while it closes."""
    for _ in range(5):
        with engine() as made:
            until(lambda made=made: made.ready)
            told = [submit(made, str(i), [1, 2]) for i in range(20)]
        assert all(one.over.is_set() for one in told)


@pytest.mark.parametrize("sizes", [{"most_waiting": 0}, {"most_waiting": -5}, {"most_calls": 0}])
def test_somebody_may_wait(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="each must be at least 1"):
        Engine(model(), name="nobody", cache=640, **sizes)


def test_an_engine_that_was_never_started_closes() -> None:
    made = Engine(model(), name="idle", cache=640)
    made.close(5)
    assert not made.alive
