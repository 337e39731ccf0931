"""Whatever else runs, comes or goes: a request's tokens are those that it gets alone, and no page is lost."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from qkv.errors import InputError, WeightError
from qkv.generate.step import Reader
from qkv.serve.ask import answer_seed
from qkv.serve.batcher import MOST_STRIKES, salt_of
from qkv.serve.events import Began, Ended, Piece
from qkv.serve.pages import Inconsistent
from qkv.serve.scheduler import Full, TooLong
from tests.generate.tiny import EOS
from tests.serve.driving import PAGE, Bench, Told, alone, model, wish

DRAWN = {"temperature": 0.9, "top_k": 50}


def texts(count: int, longest: int = 60, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(256) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("kind", ["packed", "float32", "window", "pair"])
@pytest.mark.parametrize("changes", [{}, {**DRAWN, "seed": 7}], ids=["greedy", "drawn"])
def test_each_gets_what_it_gets_alone(kind: str, changes: dict[str, Any]) -> None:
    """Many at once, of mixed lengths, with ends of their own, on pages that run out, so that some are preempted."""
    bench = Bench(kind, tokens=256, most_running=12, budget=48)
    asked = [
        (prompt, wish(max_tokens=50 - 15 * (i % 4), stop_tokens=[EOS, *range(0, 256, 20)] if i % 2 else [], **changes))
        for i, prompt in enumerate(texts(32 if kind == "packed" else 12, longest=24))
    ]
    told = [bench.ask(prompt, settings) for prompt, settings in asked]
    pages = bench.batcher.scheduler.pages
    for turn in range(11 * 11):
        if turn % 11 == 2:
            taken = pages.take(pages.free)
        bench.batcher.turn()
        if turn % 11 == 10:
            pages.release(taken)
    bench.batcher.scheduler.check()
    bench.run()
    for (prompt, settings), one in zip(asked, told, strict=True):
        expected = alone(kind, prompt, settings)
        assert one.tokens() == expected.tokens
        assert one.text() == expected.text
        assert one.reason() == expected.finish_reason
        assert one.ended[0].seed == expected.seed
    assert {one.reason() for one in told} == {"stop", "length"}
    assert bench.batcher.view.preemptions > 0
    assert bench.batcher.view.running == bench.batcher.view.waiting == bench.batcher.view.used == 0


def test_logprobs_are_those_that_it_gets_alone() -> None:
    bench = Bench()
    asked = [(prompt, wish(logprobs=n)) for prompt, n in zip(texts(3), (True, 1, 4), strict=True)]
    told = [bench.ask(*one) for one in asked]
    bench.run()
    for (prompt, settings), one in zip(asked, told, strict=True):
        expected = alone("packed", prompt, settings)
        assert [token.logprob for token in one.scored()] == expected.logprobs
        tops = expected.top_logprobs or [{}] * len(expected.tokens)
        assert [dict(token.top) for token in one.scored()] == tops


@examples(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),  # turns before it comes
            st.integers(0, 2) | st.none(),  # which beginning it shares with others
            st.integers(1, 40),
            st.integers(1, 20),
            st.integers(1, 3),
            st.booleans(),  # drawn
            st.none() | st.integers(0, 12),  # turns until it is cancelled
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([160, 240, 640]),
    st.integers(2, 6),
)
def test_any_schedule(plan: list[Any], tokens: int, most_running: int) -> None:
    """Requests that come at any time, share beginnings, have several answers and are cancelled at any time."""
    bench = Bench("packed", tokens=tokens, most_running=most_running, budget=32)
    beginnings, told, cancels, turn = texts(3, seed=5), list[Any](), list[tuple[int, str]](), 0
    for number, (later, shared, length, most, n, drawn, until) in enumerate(plan):
        for _ in range(later):
            bench.batcher.turn()
            turn += 1
        prompt = (beginnings[shared] if shared is not None else []) + texts(1, length, seed=number)[0]
        changes = {**DRAWN, "seed": number} if drawn else {}
        settings = wish(max_tokens=most, stop_tokens=[EOS, *range(0, 256, 30)], **changes)
        told.append((prompt, settings, n, until, bench.ask(prompt, settings, id=str(number), n=n)))
        if until is not None:
            cancels.append((turn + until, str(number)))
    while bench.batcher.jobs:
        for at, id in cancels:
            if at <= turn:
                bench.batcher.cancel(id)
        bench.batcher.turn()
        bench.batcher.scheduler.check()
        turn += 1
    bench.clean()
    for prompt, settings, n, until, one in told:
        assert set(one.ended) == set(range(n))
        for i in range(n):
            expected = alone("packed", prompt, settings, i)
            made = one.tokens(i)
            assert made == expected.tokens[: len(made)]
            if one.reason(i) != "cancelled":
                assert made == expected.tokens
                assert one.reason(i) == expected.finish_reason
            assert one.reason(i) != "cancelled" or until is not None


def test_a_prompt_whose_beginning_is_known_is_read_from_there() -> None:
    bench = Bench()
    prompt = texts(1, seed=3)[0] * 50
    prompt = prompt[: 4 * PAGE + 5]
    first = bench.ask(prompt)
    bench.run()
    again, other_key, other_tenant = bench.ask(prompt), bench.ask(prompt, salt="b"), bench.ask(prompt, tenant="b")
    bench.run()
    assert [one.began.cached for one in (first, again, other_key, other_tenant)] == [0, 4 * PAGE, 0, 0]
    assert again.ended[0].usage.cached == 4 * PAGE
    expected = alone("packed", prompt, wish()).tokens
    assert all(one.tokens() == expected for one in (first, again, other_key, other_tenant))
    assert bench.batcher.view.prefix_hits == bench.counts.cached_tokens == 4 * PAGE
    assert bench.counts.prompt_tokens == 4 * len(prompt)


def test_an_answer_that_becomes_a_prompt_is_read_as_one() -> None:
    """The next turn of a conversation gets what it gets alone, though what was answered has other keys than the same
    tokens of a prompt, where the library has products of its own for these."""
    bench, text = Bench(tokens=512), texts(1, seed=5)[0]
    for _ in range(3):
        told = bench.ask(text, wish(max_tokens=40))
        bench.run()
        assert told.tokens() == alone("packed", text, wish(max_tokens=40)).tokens
        text = [*text, *told.tokens(), 7, 9]
    found, first = bench.batcher.view.prefix_hits, len(text) - 3 * 42
    assert (
        found >= first // PAGE * PAGE + (first + 42) // PAGE * PAGE if bench.batcher.runner.reader.apart else found > 0
    )


def test_salts_keep_tenants_apart() -> None:
    pairs = [("a", "b"), ("ab", ""), ("", "ab"), ("a", ""), ("", "a"), ("\ud800", "")]
    assert len({salt_of(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("kind", ["packed", "float32", "pair"])
def test_several_answers_are_several_requests(kind: str) -> None:
    bench = Bench(kind)
    prompt, settings = texts(1, seed=2)[0], wish(seed=3, max_tokens=20, stop_tokens=[EOS, *range(0, 256, 30)], **DRAWN)
    together = bench.ask(prompt, settings, n=3)
    bench.run()
    singles = [bench.ask(prompt, settings.replace(seed=answer_seed(3, i))) for i in range(3)]
    bench.run()
    for i, one in enumerate(singles):
        assert together.tokens(i) == one.tokens() == alone(kind, prompt, settings, i).tokens
        assert together.ended[i].seed == answer_seed(3, i)
    assert len({tuple(together.tokens(i)) for i in range(3)}) == 3
    assert answer_seed(3, 0) == 3


def test_several_answers_share_the_pages_of_the_prompt() -> None:
    bench = Bench()
    prompt = list(range(6 * PAGE))
    bench.ask(prompt, wish(seed=1, **DRAWN), n=4)
    bench.batcher.turn()
    bench.batcher.turn()
    assert bench.batcher.view.running == 4
    assert bench.batcher.view.used == 6 + 4
    bench.run()


def test_several_answers_with_no_place_for_all() -> None:
    """Some wait, and read the prompt again."""
    bench = Bench(tokens=10 * PAGE, most_running=2, budget=32)
    prompt, settings = list(range(3 * PAGE)), wish(seed=1, max_tokens=30, **DRAWN)
    told = [bench.ask(prompt, settings, n=4), bench.ask(prompt[5:], settings, n=2)]
    bench.run()
    for i in range(4):
        assert told[0].tokens(i) == alone("packed", prompt, settings, i).tokens
    for i in range(2):
        assert told[1].tokens(i) == alone("packed", prompt[5:], settings, i).tokens


def test_stop_texts_over_the_borders_of_tokens() -> None:
    prompt = [1, 2, 3]
    whole = alone("packed", prompt, wish(max_tokens=40)).text
    stop = whole[10:13]
    bench = Bench()
    told = bench.ask(prompt, wish(max_tokens=40, stop=[stop, "never there"]))
    bench.run()
    assert told.text() == whole[: whole.index(stop)]
    assert told.reason() == "stop"
    pieces = [event for event in told.events if isinstance(event, Piece)]
    assert all(piece.text for piece in pieces[:-1]), "tokens wait for their text"
    expected = alone("packed", prompt, wish(max_tokens=40, stop=[stop, "never there"]))
    assert told.tokens() == expected.tokens


def test_events_come_in_order() -> None:
    bench = Bench()
    told = bench.ask([1, 2, 3], n=2)
    bench.run()
    assert isinstance(told.events[0], Began)
    kinds = [(type(event), getattr(event, "index", None)) for event in told.events[1:]]
    for i in range(2):
        mine = [kind for kind, index in kinds if index == i]
        assert mine[-1] is Ended
        assert mine.count(Ended) == 1
        assert Piece in mine
    times = told.ended[0].times
    assert times.first is not None
    assert min(times.queued, times.prefill) > 0
    assert times.queued + times.prefill <= times.first <= times.total
    usage = told.ended[0].usage
    assert (usage.prompt, usage.cached, usage.completion) == (3, 0, 8)


@pytest.mark.parametrize("kind", ["packed", "window"])
@pytest.mark.parametrize("top", [0, 3])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_prompt_is_scored(kind: str, top: int, n: int) -> None:
    """In chunks, behind a beginning that was read before, and among others."""
    bench = Bench(kind, budget=24, most_running=8)
    prompt = list(range(50))
    bench.ask(prompt, wish(max_tokens=2))
    bench.run()
    bench.ask(texts(1, seed=9)[0])
    told = bench.ask(prompt, echo_logprobs=top, n=n)
    bench.run()
    read = Reader(model(kind))
    logp = read([prompt], model(kind).new_cache(), [len(prompt)], [len(prompt)]).log_softmax(-1)
    assert [one.token for one in told.prompt] == prompt
    assert told.prompt[0].logprob is None
    assert not told.prompt[0].top
    for place in range(1, len(prompt)):
        one = told.prompt[place]
        assert one.logprob == pytest.approx(float(logp[place - 1, prompt[place]]), abs=1e-4)
        assert len(one.top) == top
        if top:
            assert one.top[max(one.top, key=lambda i: one.top[i])] == next(iter(one.top.values()))
    assert told.began.cached == 0
    assert [told.reason(i) for i in range(max(n, 1))] == ["length"] * max(n, 1)
    assert told.ended[0].usage.completion == (8 if n else 0)
    if n:
        assert told.tokens() == alone(kind, prompt, wish()).tokens


def test_a_scored_prompt_that_is_preempted() -> None:
    bench = Bench(tokens=12 * PAGE, most_running=4, budget=16)
    prompts = [list(range(i, i + 5 * PAGE)) for i in range(4)]
    told = [bench.ask(prompt, wish(max_tokens=20), echo_logprobs=0) for prompt in prompts]
    bench.run()
    assert bench.batcher.view.preemptions > 0
    bench = Bench()
    for prompt, one in zip(prompts, told, strict=True):
        single = bench.ask(prompt, wish(max_tokens=20), echo_logprobs=0)
        bench.run()
        assert one.prompt == single.prompt
        assert one.tokens() == single.tokens()


def test_one_token_prompts_are_scored() -> None:
    bench = Bench()
    told = bench.ask([5], echo_logprobs=2, n=0)
    bench.run()
    assert [(one.token, one.logprob) for one in told.prompt] == [(5, None)]
    assert told.reason() == "length"


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_cancelling(turns: int) -> None:
    bench = Bench()
    told, other = bench.ask([1, 2, 3], wish(max_tokens=50), id="a", n=2), bench.ask([4, 5], id="b")
    for _ in range(turns):
        bench.batcher.turn()
    bench.batcher.cancel("a")
    bench.batcher.cancel("a")
    bench.batcher.cancel("never was")
    assert [told.reason(i) for i in range(2)] == ["cancelled"] * 2
    assert len(told.tokens()) == turns == told.ended[0].usage.completion
    bench.run()
    assert other.reason() == "length"
    assert bench.over[0][1] == "cancelled"


def test_what_was_held_back_is_told_when_it_is_cancelled() -> None:
    bench = Bench()
    text = alone("packed", [1, 2, 3], wish(max_tokens=3)).text
    told = bench.ask([1, 2, 3], wish(max_tokens=50, stop=[text + "never"]), id="a")
    for _ in range(3):
        bench.batcher.turn()
    assert told.text() == ""
    bench.batcher.cancel("a")
    assert told.text() == text
    assert len(told.tokens()) == 3


def test_a_callback_that_raises_ends_its_request_alone() -> None:
    bench = Bench()
    deaf = Told()
    ask = bench.ask([1, 2], id="deaf")
    job = bench.batcher.jobs["deaf"]
    job._deliver = lambda event: 1 / 0
    other = bench.ask([4, 5])
    bench.batcher.turn()
    assert "deaf" not in bench.batcher.jobs
    bench.run()
    assert not deaf.events
    assert not ask.events
    assert other.reason() == "length"


def test_what_never_fits_is_refused() -> None:
    bench = Bench(tokens=64)
    told = bench.ask(list(range(40)), wish(max_tokens=20))
    assert told.failed is None
    bench.run()
    with pytest.raises(InputError, match="context of 64"):
        bench.ask(list(range(50)), wish(max_tokens=20))
    as_long = bench.ask(list(range(50)), wish(max_tokens=None))
    bench.run()
    assert as_long.ended[0].usage.completion == 14


def test_what_the_scheduler_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    for error, status in ((TooLong("too long"), 400), (Full("full"), 429), (RuntimeError(), 500)):
        with monkeypatch.context() as patch:
            patch.setattr(bench.batcher.scheduler, "add", lambda sequence, error=error: raised(error))
            told = bench.ask([1, 2])
        assert told.failed is not None
        assert (told.failed.error, told.failed.status) == (error, status)
    bench.run()


def raised(error: BaseException) -> Any:
    raise error


def poisoned(bench: Bench, poison: int, error: BaseException) -> None:
    """A step raises that reads this token, or has an encoder read it."""
    step = bench.batcher.runner.step

    def broken(plan: Any, wanted: Any) -> Any:
        if any(poison in (*row.tokens, *row.sequence.source) for row in plan.rows):
            raise error
        return step(plan, wanted)

    bench.batcher.runner.step = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["packed", "pair"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("it broke")])
def test_a_step_that_raises_fails_only_those_that_raise_alone(kind: str, error: Exception) -> None:
    bench = Bench(kind, budget=64, most_running=16)
    poisoned(bench, 250, error)
    prompts = [[i, i + 1, i + 2] for i in range(10, 20)]
    told = [bench.ask(prompt, wish(seed=1, max_tokens=5, suppress=[250], **DRAWN), n=2) for prompt in prompts]
    bad = bench.ask([1, 250, 3], wish(suppress=[250]), n=2)
    more = [bench.ask(prompt, wish(max_tokens=5, suppress=[250])) for prompt in prompts[:3]]
    bench.run()
    for prompt, one in zip(prompts, told, strict=True):
        for i in range(2):
            settings = wish(seed=1, max_tokens=5, suppress=[250], **DRAWN)
            assert one.tokens(i) == alone(kind, prompt, settings, i).tokens
    assert bad.failed is not None
    assert bad.failed.error is error
    assert bad.failed.status == 500
    assert bench.over[0][1:] == ("failed", error)
    assert all(one.reason() == "length" for one in more)


def test_a_step_that_raises_once_fails_nobody() -> None:
    """Not enough memory for all of it may be enough for each."""
    bench = Bench()
    step, calls = bench.batcher.runner.step, [0]

    def broken(plan: Any, wanted: Any) -> Any:
        calls[0] += 1
        if len(plan.rows) > 2:
            raise MemoryError
        return step(plan, wanted)

    bench.batcher.runner.step = broken  # type: ignore[method-assign]
    prompt = list(range(40, 40 + PAGE + 5))
    settings = wish(seed=1, max_tokens=20, **DRAWN)
    told = bench.ask(prompt, settings, n=4)
    bench.run()
    for i in range(4):
        assert told.tokens(i) == alone("packed", prompt, settings, i).tokens
    assert calls[0] > 20


def test_pages_are_copied_once_though_the_step_is_done_again() -> None:
    """Who gives its pages up in a step leaves one that was copied to another, for a copy of its own."""
    bench, settings = Bench(), wish(seed=1, max_tokens=20, **DRAWN)
    pages, step = bench.batcher.scheduler.pages, bench.batcher.runner.step
    told = [bench.ask([1, 2, 3], settings, n=2), bench.ask([4], settings, n=2)]
    bench.batcher.turn()
    seen = []

    def broken(plan: Any, wanted: Any) -> Any:
        seen.append(list(plan.copies))
        found = step(plan, wanted)
        if len(plan.rows) > 1:
            raise MemoryError
        return found

    taken = pages.take(pages.free - 1)
    bench.batcher.runner.step = broken  # type: ignore[method-assign]
    bench.batcher.turn()
    [(_, _), (source, left)] = seen[0]
    assert left == seen[0][0][0]
    assert source != left
    assert not any(seen[1:])
    bench.batcher.runner.step = step  # type: ignore[method-assign]
    pages.release(taken)
    bench.run()
    for prompt, one in zip(([1, 2, 3], [4]), told, strict=True):
        for i in range(2):
            assert one.tokens(i) == alone("packed", prompt, settings, i).tokens


def test_an_answer_with_nothing_left_to_choose_fails_alone() -> None:
    bench = Bench()
    words = [[i] for i in range(257) if i != 7]
    told = bench.ask([1, 2], wish(bad_words=words, no_repeat_ngram=2))
    other = bench.ask([1, 2], wish(max_tokens=20))
    bench.run()
    assert told.failed is not None
    assert told.failed.status == 400
    assert "nothing is left for token" in str(told.failed.error)
    assert other.reason() == "length"


def test_logits_that_are_no_numbers_fail_their_request_alone() -> None:
    bench = Bench()
    step = bench.batcher.runner.step

    def broken(plan: Any, wanted: Any) -> Any:
        found = step(plan, wanted)
        return [x * torch.nan if row.sequence.prompt[0] == 9 else x for row, x in zip(plan.rows, found, strict=True)]

    bench.batcher.runner.step = broken  # type: ignore[method-assign]
    told, other = bench.ask([9, 2], n=2), bench.ask([1, 2])
    bench.run()
    assert told.failed is not None
    assert told.failed.status == 500
    assert isinstance(told.failed.error, WeightError)
    assert other.tokens() == alone("packed", [1, 2], wish()).tokens


def test_wrong_books_end_what_runs_and_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    told = [bench.ask([1, 2, 3]), bench.ask([4, 5])]
    bench.batcher.turn()
    steps = bench.batcher.view.steps
    monkeypatch.setattr(bench.batcher.scheduler, "plan", lambda: raised(Inconsistent("a page is lost")))
    assert not bench.batcher.turn()
    assert all(one.failed is not None and one.failed.status == 500 for one in told)
    assert bench.counts.faults == 1
    fresh = bench.ask([1, 2, 3])
    while bench.batcher.turn():
        pass
    assert fresh.tokens() == alone("packed", [1, 2, 3], wish()).tokens
    assert bench.batcher.view.steps > steps, "what only grows does"
    assert bench.batcher.view.used == 0


def test_it_gives_up_where_beginning_anew_does_not_help() -> None:
    bench = Bench()
    bench.batcher.scheduler.plan = lambda: raised(Inconsistent("a page is lost"))  # type: ignore[method-assign]
    bench.batcher._strikes = MOST_STRIKES - 1
    with pytest.raises(Inconsistent, match="a page is lost"):
        bench.batcher.turn()


def test_pages_that_are_lost_are_found_while_it_idles() -> None:
    bench = Bench()
    bench.batcher.scheduler.pages.take(3)
    bench.batcher.turn()
    assert bench.batcher.view.used == 3
    bench.batcher.check()
    assert bench.counts.faults == 1
    assert bench.batcher.view.used == bench.batcher.scheduler.pages.used == 0
    told = bench.ask([1, 2])
    while bench.batcher.turn():
        pass
    assert told.reason() == "length"
