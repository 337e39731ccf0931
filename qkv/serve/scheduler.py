"""Who reads what in the next step, so that the model is always busy, memory is never short, and nobody waits forever.

Continuous batching (Yu et al., 2022, "Orca"): sequences come and go at any step. Each that has one token to read, which
is how answers are made, reads it; what is left of the budget reads prompts in chunks beside them (Agrawal et al., 2023,
"Sarathi"). Pages are taken as tokens come. When none is left the sequence that was admitted last gives up its pages and
reads all of its tokens again later: so the first admitted always goes on, and everyone is first some day.
"""

from bisect import insort
from itertools import islice

from qkv.errors import InputError, QkvError
from qkv.serve import table
from qkv.serve.fair_queue import FairQueue
from qkv.serve.pages import Inconsistent, Pages
from qkv.serve.plan import Plan, Row, quarter, share_out
from qkv.serve.sequence import Sequence

BUDGET = 192  # tokens a step: more are read no faster by a CPU, and whoever waits for the next token waits longer
MOST_RUNNING, MOST_WAITING = 64, 256
LOOKED_AT = 8  # of those in turn, when the first doesn't fit
PASSED = 32  # how many may be admitted before one that doesn't fit yet


class Full(QkvError):
    """The queue is full: try again later."""


class TooLong(InputError):
    """A sequence that would not fit if it were alone."""


class Scheduler:
    """Sequences on the pages of one model. One thread's: see `plan` for the turn that its loop takes.

    `budget`: tokens a step, at least `most_running` (InputError), which is how many read in one step; a source that an
    encoder reads counts too, though it is read whole. `most_waiting`: then `add` refuses.

    preemptions    times that pages were given up       steps    that were done
    queries, hits  prompt tokens asked for, and found   read     tokens in all steps, recomputed ones too"""

    def __init__(
        self, pages: Pages, *, budget: int = BUDGET, most_running: int = MOST_RUNNING, most_waiting: int = MOST_WAITING
    ) -> None:
        if not 1 <= most_running <= budget or most_waiting < 1:
            raise InputError(
                f"a step of {budget} tokens for {most_running} sequences, {most_waiting} waiting: "
                "each must be at least 1, and each sequence needs a token of the step"
            )
        self.pages, self.budget = pages, budget
        self.most_running, self.most_waiting = most_running, most_waiting
        self.preemptions = self.steps = self.queries = self.hits = self.read = 0
        self._live: dict[int, Sequence] = {}
        self._running: list[Sequence] = []  # in the order in which they were first admitted
        self._queue = FairQueue()
        self._admitted = 0
        self._plan: Plan | None = None
        self._rows = self._empty_slots = self._used_slots = 0  # sums over the steps

    @property
    def running(self) -> int:
        """How many sequences have pages."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return len(self._queue)

    def add(self, sequence: Sequence) -> None:
        """Into the queue. Full: it holds `most_waiting`. TooLong: no pages would do."""
        needed, there = (count * self.pages.size for count in (table.most(self.pages, sequence), self.pages.count))
        if needed > there:
            source = f", a source of {len(sequence.source)}" if sequence.source else ""
            raise TooLong(
                f"a prompt of {len(sequence.prompt)} tokens{source} and an answer of up to {sequence.limit} need "
                f"{needed} tokens of cache, there are {there}: ask for less, or serve with a larger cache"
            )
        if self.waiting >= self.most_waiting:
            raise Full(f"{self.waiting} requests are waiting already; try again later")
        self._enrol(sequence)
        self._queue.add(sequence)

    def fork(self, sequence: Sequence, child: Sequence) -> None:
        """`child` is to go on from where `sequence` is now: it has its tokens and shares its pages, each until one of
        them writes to it. Without a free place among the running it waits, and reads again.

        Inconsistent: in the middle of a step, `sequence` is finished, or `child` is another prompt or was used."""
        self._between_steps("fork")
        kin = [(s.prompt, s.source, s.salt, s.tenant) for s in (sequence, child)]
        if sequence.state == "finished" or kin[0] != kin[1] or child.made or child.limit > sequence.limit:
            raise Inconsistent(f"{child} can't go on from {sequence}")
        self._enrol(child)
        child.ids, child.cached, child.charged = list(sequence.ids), sequence.cached, sequence.charged
        child.order = self._next_order()
        if sequence.state != "running" or self.running >= self.most_running:
            self._queue.put_back(child)
            return
        table.fork(self.pages, sequence, child)
        self._run(child)

    def cancel(self, id: int) -> None:
        """The sequence of this id ends, wherever it is, and its pages are free at once. One that isn't there is no
        error: it may just have ended."""
        if (sequence := self._live.pop(id, None)) is None:
            return
        if sequence.state == "running":
            self._running.remove(sequence)
            table.give_up(self.pages, sequence)
        else:
            self._queue.remove(sequence)
        sequence.state = "finished"

    def finish(self, sequence: Sequence) -> None:
        """It has its answer. What is in its full pages can be found by others until the pages are needed."""
        if self._live.get(sequence.id) is sequence:
            self.cancel(sequence.id)

    def plan(self) -> Plan | None:
        """The next step; None: nobody has anything to read.

        The loop: copy the plan's pages, encode its sources, do its rows, cancel those that failed, then `advance`, then
        give each row's sequence that is through with its tokens another one, or `finish` it. Until `advance` sequences
        may be added and cancelled, no more."""
        self._between_steps("plan")
        reading = [one for one in self._running if len(one.ids) - one.read > 1]
        chunks, sources, copies = dict[int, int](), list[Sequence](), list[tuple[int, int]]()
        if reading or self._queue:
            sources = self._share_budget(reading, chunks)
        rows = self._rows_with_pages(chunks, copies)
        if not rows:
            return None
        self._plan = Plan(rows, copies, [one for one in sources if one.state == "running"])
        return self._plan

    def advance(self, plan: Plan) -> None:
        """The step is done: the tokens of its rows are read, and pages that are full can be found."""
        if plan is not self._plan:
            raise Inconsistent("this is not the last plan")
        self._plan = None
        for row in plan.rows:
            sequence = row.sequence
            if sequence.state == "running":
                table.advance(self.pages, sequence, row.count)
                self._queue.charge(sequence, sequence.read)
        self.steps += 1
        self.read += plan.tokens
        self._rows += len(plan.rows)
        empty, used = table.slots(self.pages, self._running)
        self._empty_slots += empty
        self._used_slots += used

    def waste(self) -> float:
        """Slots of used pages that hold no token, of all their slots: now."""
        empty, used = table.slots(self.pages, self._running)
        return empty / used if used else 0.0

    @property
    def mean_waste(self) -> float:
        """The same over all steps."""
        return self._empty_slots / self._used_slots if self._used_slots else 0.0

    @property
    def mean_rows(self) -> float:
        """Sequences a step."""
        return self._rows / self.steps if self.steps else 0.0

    def served(self, tenant: str) -> int:
        """A tenant's account of tokens, by which the queue is fair."""
        return self._queue.served(tenant)

    def check(self) -> None:
        """Count all pages of all tables again. Inconsistent names what is wrong; an engine that idles asks for it."""
        table.check(self.pages, self._running, self._plan is not None)
        waiting = {one.id for one in self._queue}
        running = {one.id for one in self._running}
        if len(waiting) != len(self._queue) or waiting & running or waiting | running != set(self._live):
            raise Inconsistent("a sequence is lost, or in two places")
        for one in self._live.values():
            wrong = one.state != ("running" if one.id in running else "waiting")
            if wrong or (one.id in waiting and (one.pages or one.source_pages or one.read)):
                raise Inconsistent(f"{one} has pages, or thinks so, and is in the queue")

    def _share_budget(self, reading: list[Sequence], chunks: dict[int, int]) -> list[Sequence]:
        """What the rows of one token leave goes to prompts: those that are being read, and new ones, for which a
        quarter is kept. Gives the new ones that have a source."""
        left, sources = self.budget - (self.running - len(reading)), list[Sequence]()
        rests = [one.waiting for one in reading]
        entry = len(self._queue) > 0 and self.running < self.most_running
        given = share_out(rests, left, quarter(left) if entry else 0)
        left -= sum(given)
        while entry and left > 0 and (new := self._admit()):
            chunks[new.id] = count = min(new.waiting, left)
            left -= count + len(new.source)
            if new.source:
                sources.append(new)
        more = share_out([rest - had for rest, had in zip(rests, given, strict=True)], left)
        for one, had, count in zip(reading, given, more, strict=True):
            if had + count:
                chunks[one.id] = had + count
        return sources

    def _admit(self) -> Sequence | None:
        """The next that fits, from the queue to the running."""
        if self.running >= self.most_running:
            return None
        # What the others are to have soon is theirs: else pages are given and taken back.
        room = self.pages.free - sum(table.soon(self.pages, one) for one in self._running)
        passed = list[Sequence]()
        for sequence in islice(self._queue.in_turn(), LOOKED_AT) if room > 0 else ():
            if table.begin(self.pages, sequence, room):
                for other in passed:
                    other.passed += 1
                self._enter(sequence)
                return sequence
            if sequence.passed >= PASSED or sequence.preempted:
                break
            passed.append(sequence)
        return None

    def _enter(self, sequence: Sequence) -> None:
        self._queue.admit(sequence)
        if sequence.order is None:
            sequence.order = self._next_order()
            sequence.cached = sequence.read
            sequence.charged += sequence.read  # what was found costs nothing
            self.queries += len(sequence.prompt) if sequence.reuse else 0
            self.hits += sequence.read
        self._queue.charge(sequence, len(sequence.ids))  # now, so that the next admission sees it
        self._run(sequence)

    def _rows_with_pages(self, chunks: dict[int, int], copies: list[tuple[int, int]]) -> list[Row]:
        """Rows, from who was admitted first to who was last, and whose pages go to the others if there are too few."""
        ones, more, at = list[Row](), list[Row](), 0
        while at < len(self._running):
            sequence = self._running[at]
            rest = len(sequence.ids) - sequence.read
            count = chunks.get(sequence.id, 0) if rest > 1 else rest
            if count and (count <= sequence.room or self._make_room(sequence, count, copies)):
                (ones if count == 1 else more).append(Row(sequence, count, sequence.read, rest == count))
            at += 1
        return ones + more

    def _make_room(self, sequence: Sequence, count: int, copies: list[tuple[int, int]]) -> bool:
        """Pages for its next tokens. False: it was the last admitted, and lost those that it had."""
        while table.missing(self.pages, sequence, count) > self.pages.free:
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        copies += table.extend(self.pages, sequence, count)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue without pages."""
        self._running.remove(sequence)
        table.give_up(self.pages, sequence)
        sequence.state = "waiting"
        sequence.preempted += 1
        self.preemptions += 1
        self._queue.put_back(sequence)

    def _enrol(self, sequence: Sequence) -> None:
        if sequence.id in self._live or sequence.state != "waiting":
            raise Inconsistent(f"{sequence} is here already, or was")
        self._live[sequence.id] = sequence

    def _run(self, sequence: Sequence) -> None:
        sequence.state = "running"
        insort(self._running, sequence, key=lambda one: one.order or 0)

    def _next_order(self) -> int:
        self._admitted += 1
        return self._admitted

    def _between_steps(self, what: str) -> None:
        if self._plan is not None:
            raise Inconsistent(f"{what}: the last plan has not advanced")
