"""The scheduler by example. That it keeps its promises whatever happens is in test_scheduling.py."""

import pytest

from qkv.errors import InputError
from qkv.serve.pages import Inconsistent, Pages
from qkv.serve.plan import Plan
from qkv.serve.scheduler import Full, Scheduler, TooLong
from qkv.serve.sequence import Sequence
from tests.serve.world import turn


def scheduler(count: int = 64, size: int = 4, **more: int) -> Scheduler:
    return Scheduler(Pages(count, size), **{"budget": 16, "most_running": 4, "most_waiting": 100, **more})


def sequence(id: int, prompt: int, limit: int = 4, **more: object) -> Sequence:
    """Its prompt is unlike others from the first token on."""
    return Sequence(id, [1000 + id] * prompt, limit=limit, **more)  # type: ignore[arg-type]


def counts(plan: Plan | None) -> dict[int, int]:
    assert plan is not None
    return {row.sequence.id: row.count for row in plan.rows}


def test_nothing_to_do() -> None:
    idle = scheduler()
    assert idle.plan() is None
    assert (idle.running, idle.waiting, idle.waste(), idle.mean_waste, idle.mean_rows) == (0, 0, 0.0, 0.0, 0.0)
    idle.check()


def test_one_answer_from_prompt_to_end() -> None:
    it, one = scheduler(), sequence(1, 20, limit=3)
    it.add(one)
    seen = []
    while plan := turn(it):
        [row] = plan.rows
        seen.append((row.start, row.count, row.last))
    assert seen == [(0, 16, False), (16, 4, True), (20, 1, True), (21, 1, True)]
    assert (one.state, one.made, it.steps, it.read, it.mean_rows) == ("finished", 3, 4, 22, 1.0)
    assert (it.pages.used, it.queries, it.hits, it.served("")) == (0, 20, 0, 22)
    it.check()


def test_answers_go_on_while_a_prompt_is_read() -> None:
    it = scheduler()
    for one in (sequence(1, 2, 9), sequence(2, 3, 9)):
        it.add(one)
    turn(it)
    it.add(sequence(3, 30))
    plan = turn(it)
    assert counts(plan) == {1: 1, 2: 1, 3: 14}
    assert [row.count for row in plan.rows] == [1, 1, 14]
    assert counts(turn(it)) == {1: 1, 2: 1, 3: 14}
    assert counts(turn(it)) == {1: 1, 2: 1, 3: 2}


def test_short_prompts_overtake_long_ones() -> None:
    it = scheduler()
    it.add(sequence(1, 100))
    turn(it)
    it.add(sequence(2, 4))
    it.add(sequence(3, 40))
    assert counts(turn(it)) == {1: 12, 2: 4}
    assert counts(turn(it)) == {1: 11, 2: 1, 3: 4}  # a quarter of what answers leave is the newcomer's
    assert counts(turn(it)) == {1: 4, 2: 1, 3: 11}  # and one of the oldest


def test_a_known_beginning_is_not_read_again() -> None:
    it, prompt = scheduler(), list(range(13))
    first = Sequence(1, prompt, limit=1)
    it.add(first)
    turn(it)
    for id, salt in ((2, b""), (3, b"other")):
        it.add(Sequence(id, prompt, limit=1, salt=salt))
    assert counts(turn(it)) == {2: 1, 3: 13}
    it.add(Sequence(4, prompt, limit=1, reuse=False))
    again = Sequence(5, [*prompt[:8], 99, 98], limit=1)
    it.add(again)
    assert counts(turn(it)) == {4: 13, 5: 2}
    assert again.cached == 8
    assert (it.queries, it.hits) == (13 * 3 + 10, 12 + 8), "who reads all of it in any case asks for nothing"


def test_an_answer_is_known_too() -> None:
    it, one = scheduler(), sequence(1, 6, 6)
    it.add(one)
    while turn(it):
        pass
    it.add(Sequence(2, [*one.ids, 5], limit=1))
    assert counts(turn(it)) == {2: 5}  # 11 of 12 were read, 8 in full pages


def test_two_with_one_beginning_read_it_once() -> None:
    """Though they come together: the second begins when there is something left of the step for it."""
    it, prompt = scheduler(), [7] * 30
    it.add(Sequence(1, prompt, limit=1))
    it.add(Sequence(2, prompt, limit=1))
    assert counts(turn(it)) == {1: 16}
    assert counts(turn(it)) == {1: 12, 2: 4}
    assert it.hits == 16


def test_forks_share_until_they_write() -> None:
    it, one = scheduler(), sequence(1, 6, 8)
    it.add(one)
    plan = it.plan()
    it.advance(plan)
    children = [Sequence(id, one.prompt, limit=8) for id in (2, 3)]
    for child in children:
        it.fork(one, child)
    assert it.pages.used == 2
    assert it.waste() == 2 / 8
    it.check()
    for token, family in enumerate((one, *children)):
        family.append(token)
    plan = it.plan()
    assert counts(plan) == {1: 1, 2: 1, 3: 1}
    assert len(plan.copies) == 2
    assert {source for source, _ in plan.copies} == {children[-1].pages[1]}
    assert len({family.pages[0] for family in (one, *children)}) == 1
    it.advance(plan)
    it.check()
    assert it.pages.used == 4


def test_a_fork_without_a_place_waits_and_reads_again() -> None:
    it, one = scheduler(most_running=1), sequence(1, 6, 2)
    it.add(one)
    it.add(sequence(9, 3, 1))
    it.advance(it.plan())
    child = Sequence(2, one.prompt, limit=2)
    it.fork(one, child)
    it.check()
    assert (child.state, it.running, it.waiting) == ("waiting", 1, 2)
    for token, family in enumerate((one, child)):
        family.append(token)
    ran = [counts(turn(it)) for _ in range(3)]
    assert ran == [{1: 1}, {2: 3}, {9: 3}]  # four of its seven tokens were in a full page
    assert child.ids == [*one.prompt, 1, 0]


def test_who_can_not_be_forked() -> None:
    it, one = scheduler(), sequence(1, 6, 8)
    it.add(one)
    for child in (
        sequence(2, 6, 8),
        Sequence(2, one.prompt, limit=9),
        Sequence(2, one.prompt, limit=8, salt=b"other"),
        Sequence(2, one.prompt, limit=8, tenant="other"),
        Sequence(2, one.prompt, limit=8, source=[1]),
        Sequence(1, one.prompt, limit=8),
    ):
        with pytest.raises(Inconsistent):
            it.fork(one, child)
    plan = it.plan()
    with pytest.raises(Inconsistent, match="fork: the last plan has not advanced"):
        it.fork(one, Sequence(2, one.prompt, limit=8))
    it.advance(plan)
    it.finish(one)
    with pytest.raises(Inconsistent, match="can't go on"):
        it.fork(one, Sequence(2, one.prompt, limit=8))
    it.check()


def test_the_last_admitted_gives_up_its_pages() -> None:
    it = scheduler(count=6)
    first, second = sequence(1, 8, 12), sequence(2, 7, 12)
    it.add(first)
    it.add(second)
    while not it.preemptions:
        turn(it)
    assert (first.state, second.state, second.preempted, second.pages) == ("running", "waiting", 1, [])
    it.check()
    made, steps = second.made, 0
    while second.state == "waiting":
        turn(it)
        steps += 1
    assert made > 0
    assert first.state == "finished"
    while turn(it):
        pass
    assert (second.made, it.preemptions, it.pages.used) == (12, 1, 0)


def test_preempted_it_reads_what_is_not_known_any_more() -> None:
    it = scheduler(count=6)
    it.add(sequence(1, 8, 12))
    it.add(one := sequence(2, 7, 12))
    rows = []
    while plan := turn(it):
        rows += [(row.start, row.count, row.last, len(one.ids)) for row in plan.rows if row.sequence is one]
    again = [row for row in rows if row[1] > 1]
    assert again[0][:3] == (0, 7, True)
    assert len(again) == 2
    assert again[1][0] % 4 == 0
    assert again[1][2], "one row, from which its next token comes"


def test_full_and_too_long() -> None:
    it = scheduler(most_waiting=2)
    it.add(sequence(1, 3))
    it.add(sequence(2, 3))
    with pytest.raises(Full, match="2 requests are waiting"):
        it.add(sequence(3, 3))
    with pytest.raises(TooLong, match=r"prompt of 250 tokens and an answer of up to 8 need 260 .* there are 256"):
        it.add(sequence(3, 250, 8))
    with pytest.raises(TooLong, match="a source of 5 and"):
        it.add(sequence(3, 249, 4, source=[1] * 5))
    it.check()
    it.cancel(1)
    it.add(sequence(4, 250, 7))
    while turn(it):
        pass
    assert it.pages.used == 0


def test_cancelled_wherever_it_is() -> None:
    it = scheduler(most_running=2)
    for id in range(4):
        it.add(sequence(id, 5, 9))
    turn(it)
    it.cancel(0)
    it.cancel(3)
    it.cancel(0)
    it.cancel(77)
    assert (it.running, it.waiting) == (1, 1)
    it.check()
    plan = it.plan()
    it.cancel(1)
    it.check()
    it.advance(plan)
    it.check()
    it.cancel(2)
    assert (it.plan(), it.pages.used) == (None, 0)


def test_an_id_that_lives_is_nobody_elses() -> None:
    it, one = scheduler(), sequence(1, 5)
    it.add(one)
    with pytest.raises(Inconsistent, match="here already"):
        it.add(sequence(1, 6))
    it.finish(sequence(1, 5))  # another of that id
    assert one.state == "waiting"
    it.finish(one)
    with pytest.raises(Inconsistent, match="or was"):
        it.add(one)
    it.add(sequence(1, 6))


def test_one_step_at_a_time() -> None:
    it = scheduler()
    it.add(sequence(1, 6))
    plan = it.plan()
    with pytest.raises(Inconsistent, match="plan: the last plan has not advanced"):
        it.plan()
    it.advance(plan)
    with pytest.raises(Inconsistent, match="not the last plan"):
        it.advance(plan)


def test_a_source_is_read_when_its_sequence_begins() -> None:
    it = scheduler(count=9)
    one, two = sequence(1, 1, 8, source=[5] * 9), sequence(2, 1, 12, source=[6] * 9)
    it.add(one)
    it.add(two)
    plan = it.plan()
    assert plan.sources == [one, two]
    assert (len(one.source_pages), it.pages.used) == (3, 8)
    it.advance(plan)
    one.append(3)
    two.append(3)
    assert it.plan().sources == []


def test_a_source_counts_as_tokens_of_the_step() -> None:
    it = scheduler()
    for id in (1, 2, 3):
        it.add(sequence(id, 1, 8, source=[5] * 10))
    assert [one.id for one in it.plan().sources] == [1, 2]


def test_a_source_is_paid_for_once_and_is_not_looked_up() -> None:
    """Tenants are served alike by what is read for them, and of an encoder–decoder that is the source above all."""
    it = scheduler(count=9)
    one, two = sequence(1, 1, 8, source=[5] * 9, tenant="a"), sequence(2, 1, 12, source=[6] * 9, tenant="b")
    it.add(one)
    it.add(two)
    while turn(it):
        pass
    assert (two.preempted, it.preemptions) == (1, 1)
    assert (it.served("a"), it.served("b")) == (9 + 8, 9 + 12)
    assert it.queries == 0


def test_what_a_scheduler_can_not_be() -> None:
    for wrong in ({"budget": 3}, {"most_running": 0}, {"most_waiting": 0}):
        with pytest.raises(InputError, match="at least 1"):
            scheduler(**wrong)


def test_the_check_finds_who_is_lost() -> None:
    for harm in (
        lambda it, one, two: it._running.remove(one),
        lambda it, one, two: it._queue.remove(two),
        lambda it, one, two: it._queue.add(one),
        lambda it, one, two: setattr(two, "state", "running"),
        lambda it, one, two: setattr(two, "read", 3),
    ):
        it, one, two = scheduler(most_running=1), sequence(1, 5), sequence(2, 5)
        it.add(one)
        it.add(two)
        turn(it)
        it.check()
        harm(it, one, two)
        with pytest.raises(Inconsistent):
            it.check()


def test_tenants_take_turns_within_a_step() -> None:
    it = scheduler()
    for id, tenant in enumerate("aaaabb"):
        it.add(sequence(id, 3, tenant=tenant))
    assert set(counts(it.plan())) == {0, 1, 4, 5}


def test_nobody_is_admitted_to_what_others_need_soon() -> None:
    it = scheduler(count=8)
    it.add(sequence(1, 24, 8))
    turn(it)
    it.add(second := sequence(2, 8, 2))
    assert it.pages.free == 4
    turn(it)
    assert second.state == "waiting"
    while turn(it):
        pass
    assert (second.made, it.preemptions) == (2, 0)


def test_a_newcomer_may_lose_its_place_in_the_same_step() -> None:
    """A page that has to be copied is one that nobody could plan with; then there is nothing to encode either."""
    it, one = scheduler(count=4), sequence(1, 6, 3)
    it.add(one)
    it.advance(it.plan())
    child = Sequence(2, one.prompt, limit=3)
    it.fork(one, child)
    for token, family in enumerate((one, child)):
        family.append(token)
    it.add(new := sequence(3, 1, 4, source=[5] * 3))
    plan = it.plan()
    assert counts(plan) == {1: 1, 2: 1}
    assert (plan.sources, new.state, new.source_pages, len(plan.copies)) == ([], "waiting", [], 1)
    it.check()
