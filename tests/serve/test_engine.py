"""The engine from outside: many threads ask, one loop answers, and nothing is lost when things go wrong."""

import random
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

import pytest
import torch

from qkv import spec
from qkv.errors import InputError
from qkv.serve.ask import Ask, Grammar
from qkv.serve.engine import Engine
from qkv.serve.events import Ended, Event, Failed, Stopped
from qkv.serve.scheduler import Full
from qkv.serve.state import Finished
from tests.generate.tiny import EOS
from tests.serve.driving import Told, alone, engine, filled, model, submit, waited, wish

DRAWN = {"temperature": 0.9, "top_k": 50}


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def slow(made: Engine, seconds: float) -> None:
    """Each step takes at least so long."""
    runner = made._batcher.runner  # type: ignore[union-attr]
    step = runner.step

    def slower(*what: Any) -> Any:
        time.sleep(seconds)
        return step(*what)

    runner.step = slower  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["packed", "pair"])
def test_under_load_each_gets_what_it_gets_alone(kind: str) -> None:
    """From several threads, greedy and drawn, some with shared beginnings, some cancelled."""
    draw = random.Random(0)
    beginning = [draw.randrange(256) for _ in range(40)]
    asked = []
    for i in range(32 if kind == "packed" else 12):
        prompt = beginning[: 40 * (i % 2)] + [draw.randrange(256) for _ in range(draw.randint(1, 30))]
        settings = wish(max_tokens=4 + i, stop_tokens=[EOS, *range(0, 256, 30)], **(DRAWN if i % 3 else {}), seed=i)
        asked.append((prompt, settings, i % 5 == 4))
    told: list[Told] = [Told() for _ in asked]
    with engine(kind, cache=640, most_running=12, budget=64) as made:

        def ask(first: int) -> None:
            for i in range(first, len(asked), 4):
                prompt, settings, cancelled = asked[i]
                made.submit(Ask(str(i), tuple(prompt), settings), told[i])
                if cancelled:
                    time.sleep(0.01)
                    made.cancel(str(i))

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        waited(*told)
        state = made.state()
        assert (state.used, state.running, state.waiting) == (0, 0, 0)
        assert state.used + state.free == state.pages
        assert sum(state.finished.values()) == state.submitted == len(asked)
        assert state.generated_tokens == sum(len(one.tokens()) for one in told)
        assert state.faults == 0
    for (prompt, settings, _), one in zip(asked, told, strict=True):
        expected = alone(kind, prompt, settings)
        made_tokens = one.tokens()
        assert made_tokens == expected.tokens[: len(made_tokens)]
        if one.reason() != "cancelled":
            assert (made_tokens, one.text()) == (expected.tokens, expected.text)


def test_it_is_ready_once_the_first_token_was_made() -> None:
    with engine(start=False) as made:
        assert not made.ready and not made.alive  # noqa: PT018
        with pytest.raises(Stopped, match="isn't running"):
            submit(made, "a", [1])
        with pytest.raises(Stopped):
            made.call(lambda model: 1)
        made.start()
        until(lambda: made.ready)
        state = made.state()
        assert state.alive and state.ready  # noqa: PT018
        assert (state.submitted, state.prompt_tokens, state.generated_tokens) == (0, 0, 0)
        assert state.finished == {"stop": 0, "length": 0, "cancelled": 0, "failed": 0}
        assert (state.steps, state.prefix_queries, state.tokens_per_second) == (0, 0, 0.0), "the first is not counted"
        assert "native" in state.step
        with pytest.raises(InputError, match="started before"):
            made.start()


def test_a_model_that_makes_no_numbers_never_gets_ready() -> None:
    broken = filled(model("float32").spec)
    with torch.no_grad():
        broken.table.fill_(torch.nan)
    made = Engine(broken, name="broken", cache=640)
    made.start()
    until(lambda: not made.alive)
    assert not made.ready
    assert "not numbers any more" in str(made.failure)
    with pytest.raises(Stopped, match="has failed"):
        submit(made, "a", [1])
    made.close()


def test_what_is_wrong_is_raised_at_once() -> None:
    with engine() as made:
        with pytest.raises(InputError, match="prompt is empty"):
            submit(made, "a", [])
        with pytest.raises(InputError, match="grammar: regex may have"):
            submit(made, "a", [1], grammar=Grammar("regex", "x" * 10**6))
        with pytest.raises(InputError, match="logit_bias"):
            submit(made, "a", [1], wish(logit_bias={300: 1.0}))
        assert made.state().submitted == 0


def test_an_id_is_one_request_at_a_time() -> None:
    with engine() as made:
        slow(made, 0.02)
        told = submit(made, "a", [1])
        with pytest.raises(InputError, match="'a' is running already"):
            submit(made, "a", [1])
        waited(told)
        waited(submit(made, "a", [1]))


def test_a_full_queue() -> None:
    with engine(most_running=1, most_waiting=3) as made:
        until(lambda: made.ready)
        slow(made, 0.05)
        told = [submit(made, "0", [1])]
        until(lambda: made.state().running == 1)
        told += [submit(made, str(i), [1]) for i in range(1, 4)]
        with pytest.raises(Full, match="3 requests are waiting already"):
            submit(made, "4", [1])
        made.cancel("1")
        waited(told[1])
        told.append(submit(made, "4", [1]))
        waited(*told)


def test_fair_to_tenants() -> None:
    """One that asks for much doesn't hold up one that asks for little."""
    ended: list[str] = []
    with engine(most_running=2) as made:
        slow(made, 0.005)
        made.watch(lambda record: ended.append(record.id))
        told = [submit(made, f"much {i}", [1, 2], tenant="a") for i in range(10)]
        told.append(submit(made, "little", [1, 2], tenant="b"))
        waited(*told)
    assert ended.index("little") < 5


def test_cancelling() -> None:
    with engine(most_running=1) as made:
        slow(made, 0.01)
        running = submit(made, "running", [1], wish(max_tokens=200))
        queued = submit(made, "queued", [1], wish(max_tokens=200), n=2)
        until(lambda: len(running.tokens()) > 2)
        made.cancel("queued")
        made.cancel("queued")
        made.cancel("unknown")
        waited(queued)
        assert [type(event) for event in queued.events] == [Ended, Ended]
        made.cancel("running")
        waited(running)
        assert running.reason() == "cancelled"
        assert 2 < len(running.tokens()) < 60
        assert made.state().finished["cancelled"] == 2
        assert made.state().used == 0


def test_calls_come_between_steps() -> None:
    with engine() as made:
        told = submit(made, "a", [1], wish(max_tokens=50))
        thread = made.call(lambda model: threading.current_thread().name).result(10)
        assert thread == "qkv packed"
        assert made.call(lambda model: model.spec.vocab).result(10) == 257
        with pytest.raises(ZeroDivisionError):
            made.call(lambda model: 1 // 0).result(10)
        waited(told)
        assert told.tokens() == alone("packed", [1], wish(max_tokens=50)).tokens


def test_calls_are_bounded_and_can_be_taken_back() -> None:
    with engine(most_calls=3) as made:
        hold, held = threading.Event(), threading.Event()
        first = made.call(lambda model: (held.set(), hold.wait(20)))
        assert held.wait(10)
        others = [made.call(lambda model: 1) for _ in range(3)]
        with pytest.raises(Full, match="3 calls are waiting already"):
            made.call(lambda model: 1)
        assert others[1].cancel()
        hold.set()
        assert first.result(10)
        assert [others[i].result(10) for i in (0, 2)] == [1, 1]
        with pytest.raises(CancelledError):
            others[1].result(10)


def test_the_heart_beats_while_there_is_nothing_to_do_and_stops_with_the_loop() -> None:
    with engine() as made:
        until(lambda: made.ready)
        time.sleep(0.8)
        assert made.heartbeat() < 0.7
        hold = threading.Event()
        future = made.call(lambda model: hold.wait(20))
        until(lambda: made.heartbeat() > 0.7)
        assert made.alive
        hold.set()
        future.result(10)
        until(lambda: made.heartbeat() < 0.6)


def test_closing_waits_for_what_runs() -> None:
    with engine() as made:
        slow(made, 0.01)
        told = [submit(made, str(i), [i + 1], n=2) for i in range(3)]
        call = made.call(lambda model: 5)
        made.close(grace=20)
        assert all(one.reason(i) == "length" for one in told for i in range(2))
        assert call.result(0) == 5
        with pytest.raises(Stopped):
            submit(made, "x", [1])
        assert made.failure is None


def test_closing_cancels_what_does_not_end_in_time() -> None:
    with engine(most_running=1) as made:
        slow(made, 0.02)
        told = [submit(made, str(i), [i + 1], wish(max_tokens=200)) for i in range(3)]
        began = time.monotonic()
        made.close(grace=0.2)
        assert time.monotonic() - began < 5
        assert [one.reason() for one in told] == ["cancelled"] * 3
        assert told[0].tokens()


def test_the_second_close_is_at_once() -> None:
    with engine() as made:
        slow(made, 0.02)
        told = submit(made, "a", [1], wish(max_tokens=200))
        first = threading.Thread(target=made.close, args=(60,))
        first.start()
        time.sleep(0.05)
        assert first.is_alive()
        made.close()
        first.join(5)
        assert told.reason() == "cancelled"


def test_a_loop_that_dies_tells_everyone() -> None:
    made = Engine(model(), name="dies", cache=640)
    records: list[Finished] = []
    made.watch(records.append)
    made.start()
    until(lambda: made.ready)
    slow(made, 0.02)
    told = [submit(made, str(i), [1], wish(max_tokens=200)) for i in range(3)]
    hold = threading.Event()
    made.call(lambda model: hold.wait(20))
    late = [made.call(lambda model: raised(SystemExit("it is over"))), made.call(lambda model: 1)]
    hold.set()
    waited(*told)
    until(lambda: not made.alive)
    for one in told:
        assert one.failed is not None
        assert one.failed.status == 500
        assert "has failed" in str(one.failed.error)
    assert isinstance(late[0].exception(5), SystemExit)
    assert isinstance(late[1].exception(5), Stopped)
    assert isinstance(made.failure, SystemExit)
    assert [record.reason for record in records] == ["failed"] * 3
    with pytest.raises(Stopped, match="has failed"):
        submit(made, "x", [1])
    made.close()


def raised(error: BaseException) -> Any:
    raise error


def test_the_loop_goes_on_after_a_step_that_raises() -> None:
    with engine() as made:
        until(lambda: made.ready)
        runner = made._batcher.runner  # type: ignore[union-attr]
        step = runner.step

        def broken(plan: Any, wanted: Any) -> Any:
            if any(250 in row.sequence.prompt for row in plan.rows):
                raise MemoryError
            return step(plan, wanted)

        runner.step = broken  # type: ignore[method-assign]
        told = [submit(made, str(i), [1, 250 if i == 2 else 3]) for i in range(5)]
        waited(*told)
        assert [type(one.events[-1]) for one in told] == [Ended, Ended, Failed, Ended, Ended]
        assert made.state().finished["failed"] == 1
        assert made.state().used == 0
        waited(submit(made, "after", [1, 3]))


def test_observers_get_a_record_of_each_request() -> None:
    records: list[Finished] = []
    with engine() as made:
        made.watch(lambda record: raised(ValueError("an observer's own fault")))
        made.watch(records.append)
        before = time.time()
        waited(submit(made, "a", [1, 2, 3], n=2, tenant="t"))
    (record,) = records
    assert (record.id, record.tenant, record.prompt, record.cached, record.n) == ("a", "t", 3, 0, 2)
    assert (record.completion, record.reason, record.error) == (16, "length", None)
    assert before <= record.arrived <= time.time()
    assert record.first is not None
    assert record.first + record.decode == pytest.approx(record.total)
    assert 0 < record.queued + record.prefill <= record.first
    assert len(record.gaps) == 14
    assert sum(record.gaps) / 2 == pytest.approx(record.decode, rel=0.5, abs=0.01)


def test_what_a_client_sees_at_the_end_is_that_its_pages_are_free() -> None:
    seen: list[Any] = []
    with engine() as made:

        def deliver(event: Event) -> None:
            if isinstance(event, Ended):
                made.submit(Ask("a", (5,), wish()), again)
                seen.append((made.state().used, made.state().running, made.state().finished["length"]))

        again = Told()
        made.submit(Ask("a", (1, 2), wish()), deliver)
        waited(again)
    assert seen == [(0, 0, 1)]


def test_fresh_seeds_differ_and_can_be_repeated() -> None:
    drawn = wish(max_tokens=12, **DRAWN)
    texts = []
    for seed in (1, 1, 2):
        with engine(seed=seed) as made:
            told = [submit(made, str(i), [1, 2, 3], drawn) for i in range(3)]
            waited(*told)
            texts.append([tuple(one.tokens()) for one in told])
            assert told[0].tokens() == alone("packed", [1, 2, 3], replace(drawn, seed=told[0].ended[0].seed)).tokens
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3


def test_a_model_that_only_embeds_takes_calls() -> None:
    full = spec.Attention(2, 2, mask=spec.Full())
    stack = spec.Stack((spec.Block(full, spec.Plain(32, "gelu"), spec.LayerNorm()),), 1)
    made = Engine(filled(spec.Model(257, 16, encoder=stack, head=spec.States(), context=32)), name="states")
    assert not made.generates
    made.start()
    until(lambda: made.ready)
    with pytest.raises(InputError, match="can't generate"):
        submit(made, "a", [1, 2])
    assert made.call(lambda model: model([[1, 2]])[0].shape).result(10) == (2, 16)
    state = made.state()
    assert (state.pages, state.used, state.usage) == (0, 0, 0.0)
    made.close()


def test_settings_are_the_models_own() -> None:
    made = filled(model("float32").spec)
    made.generation = {"num_beams": 4, "do_sample": False, "eos_token_id": 5}
    served = Engine(made, name="x", cache=640)
    found = served.settings(temperature=0.5, top_p=0.9)
    assert (found.beams, found.max_tokens, found.temperature, found.stop_tokens) == (1, None, 0.5, (5,))
    assert served.settings(max_tokens=3).max_tokens == 3
    made.generation = {"max_new_tokens": 7}
    assert served.settings().max_tokens == 7
