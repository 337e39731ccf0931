"""What the scheduler promises whatever happens: no page lost, nothing written that another reads, nobody forgotten."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qkv.serve.pages import Pages
from qkv.serve.plan import quarter
from qkv.serve.prefix import digest
from qkv.serve.scheduler import Full, Scheduler, TooLong
from qkv.serve.sequence import Sequence
from tests.serve.world import Memory, answer, turn

LENGTHS = Path(__file__).parent.parent / "data/azure-llm-2023/lengths.csv"
SEEDS = st.integers(0, 2**32)


class Serving(RuleBasedStateMachine):
    """Requests that come, fork, end and leave in any order, on few pages."""

    @initialize(seed=SEEDS, forged=st.sampled_from([digest, lambda content: b"same"]))
    def start(self, seed: int, forged: object) -> None:
        self.rng = rng = random.Random(seed)  # hypothesis draws little numbers, and then nothing is ever short
        most_running, size = rng.randint(2, 8), rng.randint(1, 5)
        self.pages = Pages(rng.randint(3, 70 // size), size, digest=forged)
        self.it = Scheduler(self.pages, budget=rng.randint(8, 16), most_running=most_running, most_waiting=6)
        self.memory, self.live, self.ids = Memory(self.pages), dict[int, Sequence](), 0
        self.memory.tables = lambda: [t for one in self.live.values() for t in (one.pages, one.source_pages)]

    def new(self, prompt: object, **more: object) -> Sequence:
        self.ids += 1
        return Sequence(self.ids, prompt, **more)

    @rule(count=st.integers(1, 3))
    def add(self, count: int) -> None:
        rng, size, before = self.rng, self.pages.size, self.pages.free
        for _ in range(count):
            one = self.new(
                [rng.randint(0, 1)] * rng.randint(0, 9) + rng.choices((0, 1), k=rng.randint(1, 9)),
                limit=rng.randint(0, 12),
                salt=rng.choice([b"", b"", b"a"]),
                tenant=rng.choice("xyz"),
                source=rng.choices((0, 1), k=rng.choice([0, 0, 0, 5])),
                reuse=rng.random() < 0.8,
            )
            try:
                self.it.add(one)
            except TooLong:
                assert -(-one.longest // size) - (-len(one.source) // size) > self.pages.count
            except Full:
                assert self.it.waiting >= 6
            else:
                self.live[one.id] = one
        assert self.pages.free == before

    @precondition(lambda self: self.live)
    @rule(count=st.integers(1, 3))
    def fork(self, count: int) -> None:
        """Beams do so too: in the middle of an answer. And children before they have read anything."""
        running = [one for one in self.live.values() if one.state == "running"]
        one, used = self.rng.choice(running or list(self.live.values())), self.pages.used
        for _ in range(count if len(self.live) < 12 else 0):
            kin = {"salt": one.salt, "tenant": one.tenant, "source": one.source}
            child = self.new(one.prompt, limit=one.limit, **kin)
            self.it.fork(one, child)
            self.live[child.id] = child
            assert child.ids == one.ids
        assert self.pages.used == used
        self.step()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = self.live.pop(data.draw(st.sampled_from(sorted(self.live))))
        self.it.cancel(one.id)
        assert (one.state, one.pages, one.source_pages) == ("finished", [], [])

    @rule(times=st.integers(1, 6))
    def steps(self, times: int) -> None:
        for _ in range(times):
            self.step()
            self.it.check()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def disturbed(self, data: st.DataObject) -> None:
        """In the middle of a step somebody leaves, as all do whose row fails."""
        self.step(lambda: self.cancel(data))

    def step(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        plan = self.it.plan()
        if plan is None:
            assert not self.live
            return
        assert plan.tokens <= self.it.budget
        meanwhile()
        plan.rows = [row for row in plan.rows if row.sequence.state == "running"]
        plan.sources = [one for one in plan.sources if one.state == "running"]
        self.memory.step(plan, self.rng)
        self.it.advance(plan)
        answer(self.it, plan, lambda sequence: self.rng.randint(0, 1))
        self.live = {id: one for id, one in self.live.items() if one.state != "finished"}

    @invariant()
    def in_order(self) -> None:
        if hasattr(self, "it"):
            self.it.check()
            assert self.pages.free + self.pages.used == self.pages.count
            assert self.it.running + self.it.waiting == len(self.live)
            assert self.it.running <= self.it.most_running
            assert 0 <= self.it.waste() <= 1

    def teardown(self) -> None:
        """Nobody new comes: all end, in no more steps than the tokens that they have to read one after the other."""
        if not hasattr(self, "it"):
            return
        bound = sum(one.longest + 1 for one in self.live.values())
        everyone, steps = list(self.live.values()), 0
        while plan := self.it.plan():
            self.memory.step(plan, self.rng)
            self.it.advance(plan)
            answer(self.it, plan, lambda sequence: 0)
            self.it.check()
            steps += 1
            assert steps <= bound, "somebody waits forever"
        assert all(one.state == "finished" and one.made == one.limit for one in everyone)
        assert (self.pages.used, self.it.running, self.it.waiting) == (0, 0, 0)


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_one_long_prompt_beside_many_short_ones() -> None:
    """100,000 tokens, with short requests without end: neither waits for the other."""
    it = Scheduler(Pages(8192, 16), budget=512)
    long = Sequence(0, range(100_000), limit=3)
    it.add(long)
    came, first, step = dict[int, int](), dict[int, int](), 0
    while long.state != "finished":
        for id in range(2 * step + 1, 2 * step + 3):
            came[id] = step
            it.add(Sequence(id, [id] * 40, limit=8))
        plan = turn(it)
        for row in plan.rows:
            if row.last and row.sequence.id:
                first.setdefault(row.sequence.id, step)
        step += 1
    waits = [first[id] - came[id] for id in first]
    assert len(waits) > 2 * step - 10
    assert max(waits) <= 1
    assert step <= 100_000 / quarter(512 - 64) + 8


def test_long_prompts_do_not_keep_short_ones_out() -> None:
    it = Scheduler(Pages(8192, 16), budget=512, most_running=16)
    for id in range(8):
        it.add(Sequence(id, [id] * 10_000, limit=1))
    for _ in range(20):
        turn(it)
    it.add(short := Sequence(100, [100] * 60, limit=1))
    turn(it)
    assert short.state == "finished"


def test_who_does_not_fit_yet_is_passed_but_not_forever() -> None:
    it = Scheduler(Pages(64, 16), most_waiting=1000)
    for id in range(4):
        it.add(Sequence(id, [id] * 100, limit=60))
    turn(it)
    big = Sequence(10, [10] * 900, limit=10)
    it.add(big)
    id, ended = 100, 0
    while big.state == "waiting":
        while it.waiting < 5:
            it.add(Sequence(id, [id] * 30, limit=20))
            id += 1
        turn(it)
        ended += 1
        assert ended < 400
    assert big.passed == 32
    it.check()


@pytest.mark.parametrize("many", [1, 5])
def test_tenants_get_the_same(many: int) -> None:
    """However many requests one sends, and however long: as close as the requests that run allow."""
    rng = random.Random(many)
    it = Scheduler(Pages(4096, 16), budget=64, most_running=8, most_waiting=10_000)
    ids = iter(range(100_000))

    def request(tenant: str, prompt: int) -> None:
        id = next(ids)
        it.add(Sequence(id, [id] * prompt, limit=rng.randint(1, 20), tenant=tenant))

    for _ in range(400 * many):
        request("greedy", rng.randint(50, 150))
    for step in range(1500):
        if step == 300:
            for _ in range(1000):
                request("modest", rng.randint(1, 50))
            start = {name: it.served(name) for name in ("greedy", "modest")}
        turn(it)
        if step > 400:
            gained = {name: it.served(name) - start[name] for name in start}
            assert abs(gained["greedy"] - gained["modest"]) <= 2 * 8 * 170
    assert min(gained.values()) > 20_000


def test_nothing_is_found_twice_for_two_salts() -> None:
    it, prompt = Scheduler(Pages(64, 4)), list(range(40))
    for id, salt in enumerate([b"a", b"b", b"", b"a", b"b", b""]):
        one = Sequence(id, prompt, limit=1, salt=salt)
        it.add(one)
        turn(it)
        assert one.cached == (36 if id > 2 else 0)


def test_waste_on_real_lengths() -> None:
    """Pages of 16 on a real trace's lengths (data/azure-llm-2023): under 4 % of the slots in use hold nothing."""
    with LENGTHS.open() as file:
        lengths = [(int(row["prompt"]), int(row["answer"])) for row in csv.DictReader(file)]
    it = Scheduler(Pages(3072), most_waiting=len(lengths))
    for id, (prompt, limit) in enumerate(lengths):
        it.add(Sequence(id, (id, *[0] * (prompt - 1)), limit=limit))
    while turn(it):
        pass
    assert it.mean_waste < 0.01
    assert it.hits == 0
    assert it.mean_rows > 20
