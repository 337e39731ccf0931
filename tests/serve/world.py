"""A model that isn't there: pages that remember what was written to them, and an engine's loop without an engine."""

import random
from collections.abc import Callable, Iterable

from qkv.serve.pages import Pages
from qkv.serve.plan import Plan
from qkv.serve.scheduler import Scheduler
from qkv.serve.sequence import Sequence


class Memory:
    """What the pages' slots hold: for a token's keys all that they depend on, which is what was read up to there."""

    def __init__(self, pages: Pages) -> None:
        self.slots: list[list[object]] = [[None] * pages.size for _ in range(pages.count)]
        self.pages, self.size = pages, pages.size
        self.tables: Callable[[], Iterable[list[int]]] = lambda: ()

    def step(self, plan: Plan, rng: random.Random) -> None:
        """Do it, and hold it to all that a plan promises."""
        for sequence in plan.sources:
            for at, token in enumerate(sequence.source):
                self.slots[sequence.source_pages[at // self.size]][at % self.size] = (sequence.source, token)
        targets = [target for _, target in plan.copies]
        assert len(set(targets)) == len(targets)
        if rng.random() < 0.5:  # all at once
            found = [list(self.slots[source]) for source, _ in plan.copies]
            for target, slots in zip(targets, found, strict=True):
                self.slots[target] = slots
        else:
            for source, target in plan.copies:
                self.slots[target] = list(self.slots[source])
        rows = {row.sequence.id for row in plan.rows}
        assert len(rows) == len(plan.rows)
        for row in plan.rows:
            self._row(row.sequence, row.start, row.count)
            assert row.last == (row.start + row.count == len(row.sequence.ids))
            assert row.tokens == row.sequence.ids[row.start : row.start + row.count]

    def _row(self, sequence: Sequence, start: int, count: int) -> None:
        assert start == sequence.read
        assert count > 0
        for at, token in enumerate(sequence.source):
            assert self.slots[sequence.source_pages[at // self.size]][at % self.size] == (sequence.source, token)
        for at in range(start):
            assert self.slots[sequence.pages[at // self.size]][at % self.size] == self.keys(sequence, at)
        for page in {sequence.pages[at // self.size] for at in range(start, start + count)}:
            assert self.pages.writable(page)
            assert sum(page in table for table in self.tables()) == 1, "another would see it change"
        for at in range(start, start + count):
            self.slots[sequence.pages[at // self.size]][at % self.size] = self.keys(sequence, at)

    @staticmethod
    def keys(sequence: Sequence, at: int) -> object:
        """A salt stands for what makes one's keys another's secret, so it is part of them."""
        return sequence.salt, sequence.source, tuple(sequence.ids[: at + 1])


def turn(scheduler: Scheduler, token: Callable[[Sequence], int] = lambda sequence: 0) -> Plan | None:
    """One turn of an engine's loop: each that is through with its tokens gets another or, if it is full, ends."""
    plan = scheduler.plan()
    if plan is not None:
        scheduler.advance(plan)
        answer(scheduler, plan, token)
    return plan


def answer(scheduler: Scheduler, plan: Plan, token: Callable[[Sequence], int]) -> None:
    """What follows a step."""
    for row in plan.rows:
        sequence = row.sequence
        if row.last and sequence.state == "running":
            if sequence.made < sequence.limit:
                sequence.append(token(sequence))
            if sequence.made >= sequence.limit:
                scheduler.finish(sequence)
