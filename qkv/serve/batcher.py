"""Continuous batching: jobs come and go between steps, and each step reads for all that are there.

One turn is: plan, step, and for each sequence whose tokens are all read the next one. No thread is started here and
nothing waits, so what happens depends on the calls alone.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from itertools import count

from torch import Tensor

from qkv.errors import InputError
from qkv.model import Model
from qkv.serve.events import Reason
from qkv.serve.job import Answer, Job
from qkv.serve.memory import Memory
from qkv.serve.pages import Inconsistent, Pages
from qkv.serve.plan import Plan, Row
from qkv.serve.runner import Runner
from qkv.serve.scheduler import BUDGET, MOST_RUNNING, MOST_WAITING, Full, Scheduler
from qkv.serve.sequence import Sequence
from qkv.serve.state import Counts, View

MOST_STRIKES = 3  # faults in a row after which it is no use to go on
log = logging.getLogger(__name__)


class Batcher:
    """The jobs of one model. `over`: called with each that is over, why, and the error if it failed; `view`: the queue
    and the pages after the last turn."""

    def __init__(
        self,
        model: Model,
        memory: Memory,
        counts: Counts,
        *,
        budget: int = BUDGET,
        most_running: int = MOST_RUNNING,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.runner = Runner(model, memory.pages, memory.page)
        self.counts, self.jobs = counts, dict[str, Job]()
        self.over: Callable[[Job, str, Exception | None], None] = lambda job, reason, error: None
        self._answers, self._numbers = dict[int, Answer](), count()
        # Whoever was preempted waits too, and answers beside the first one that found no slot.
        most_waiting += 8 * most_running
        self._sizes = {"budget": budget, "most_running": most_running, "most_waiting": most_waiting}
        self._memory = memory
        self._before, self._strikes = Counter[str](), 0
        self.scheduler = self._fresh()
        self.view = self._look()

    def warm_up(self, job: Job, turned: Callable[[], None]) -> None:
        """Do a job of which nothing is told or counted; `turned` after each turn. It raises what goes wrong with it."""
        kept, failed = (self.counts, self.over), list[Exception]()
        self.counts, self.over = Counts(), lambda job, reason, error: failed.extend([error] if error else [])
        self.add(job)
        while self.turn():
            turned()
        (self.counts, self.over), self.scheduler = kept, self._fresh()
        self.view = self._look()
        if failed:
            raise failed[0]

    # ---------------------------------------------------------------- what comes and goes

    def add(self, job: Job) -> None:
        """Queue a job, which InputError or Full may end at once."""
        self.jobs[job.ask.id] = job
        try:
            self.scheduler.add(self._sequence(job.answers[0]))
        except InputError as error:
            self.fail(job, error, 400)
        except Full as error:
            self.fail(job, error, 429)
        except Exception as error:
            self.fail(job, error, 500)

    def cancel(self, id: str) -> None:
        """End what is open of a job; one that isn't there any more is no matter."""
        job = self.jobs.get(id)
        if job is None:
            return
        self._release(job)
        self._close(job, "cancelled")
        job.cancel()

    def fail(self, job: Job, error: Exception, status: int) -> None:
        """End a job with an error."""
        self._release(job)
        self._close(job, "failed", error)
        job.fail(error, status)

    def _sequence(self, answer: Answer) -> Sequence:
        ask, request = answer.job.ask, answer.writer.request
        answer.sequence = Sequence(
            next(self._numbers),
            request.prompt,
            limit=request.limit,
            salt=salt_of(ask.tenant, ask.salt),
            tenant=ask.tenant,
            source=request.source,
            reuse=ask.echo_logprobs is None,
            apart=self.runner.reader.apart,
        )
        self._answers[answer.sequence.id] = answer
        return answer.sequence

    def _release(self, job: Job) -> None:
        for answer in job.answers:
            if answer.sequence is not None and self._answers.pop(answer.sequence.id, None) is not None:
                self.scheduler.cancel(answer.sequence.id)

    def _close(self, job: Job, reason: str, error: Exception | None = None) -> None:
        """Before its client is told: what it sees then, and asks for next, finds the job gone."""
        del self.jobs[job.ask.id]
        self.view = self._look()
        self.over(job, reason, error)

    # ---------------------------------------------------------------- a turn

    def turn(self) -> bool:
        """Do a step, if there is something to do: was there? It raises what it can't get over."""
        try:
            plan = self.scheduler.plan()
            if plan is not None:
                self._step(plan)
                self._strikes = 0
        except Exception as error:
            plan = None
            self._anew(error)
        for job in [job for job in self.jobs.values() if job.deaf]:
            self.cancel(job.ask.id)
        self.view = self._look()
        return plan is not None

    def _step(self, plan: Plan) -> None:
        answers = [self._answers[row.sequence.id] for row in plan.rows]
        for answer, row in zip(answers, plan.rows, strict=True):
            answer.job.begin(row.sequence)
        wanted = [
            max(answer.job.unscored(row.start, row.count), int(row.last))
            for answer, row in zip(answers, plan.rows, strict=True)
        ]
        try:
            read: list[Tensor] | list[Tensor | None] = self.runner.step(plan, wanted)
        except Exception:
            log.exception("a step of %d sequences failed; each is tried alone", len(plan.rows))
            read = self._alone(plan, wanted)
        self.scheduler.advance(plan)
        pairs = zip(plan.rows, read, strict=True)
        self.counts.step(sum(self._read(row, logits) for row, logits in pairs if logits is not None))

    def _alone(self, plan: Plan, wanted: list[int]) -> list[Tensor | None]:
        """A step that failed, row by row: only those fail that fail alone too."""
        self.runner.cache.copy(plan.copies)  # those that are left: all, if it failed before they were done, or none
        read: list[Tensor | None] = []
        for row, mine in zip(plan.rows, wanted, strict=True):
            sources = [text for text in plan.sources if text is row.sequence]
            answer = self._answers.get(row.sequence.id)
            read.append(None)
            if answer is None:
                continue
            try:
                read[-1] = self.runner.step(Plan([row], [], sources), [mine])[0]
            except Exception as own:
                log.error("request %r failed: %s: %s", answer.job.ask.id, type(own).__name__, own)
                self.fail(answer.job, own, 500)
        return read

    def _read(self, row: Row, logits: Tensor) -> int:
        """What logits [N, V] behind a row's last tokens are for → how many tokens were chosen."""
        answer = self._answers.get(row.sequence.id)
        if answer is None:
            return 0  # its job has ended by another of its rows
        job, due = answer.job, [answer]
        job.score(logits, row.start + row.count)
        if not row.last:
            return 0
        if job.read is None:
            job.prompt_read()
            self.counts.prompt_tokens += len(job.ask.prompt)
            self.counts.cached_tokens += job.cached
            for other in job.answers[1:]:
                self.scheduler.fork(row.sequence, self._sequence(other))
            due = job.answers
        if job.ask.n == 0:
            self._end(answer, "length")
            return 0
        return sum(self._write(one, logits[-1]) for one in due if job.ask.id in self.jobs)

    def _write(self, answer: Answer, logits: Tensor) -> int:
        assert answer.sequence is not None
        try:
            token, reason = answer.write(logits, answer.sequence.ids)
        except InputError as error:
            self.fail(answer.job, error, 400)
            return 0
        except Exception as error:
            log.exception("request %r failed", answer.job.ask.id)
            self.fail(answer.job, error, 500)
            return 0
        self.counts.generated_tokens += 1
        if reason is None:
            answer.sequence.append(token)
        else:
            self._end(answer, reason)
        return 1

    def _end(self, answer: Answer, reason: Reason) -> None:
        assert answer.sequence is not None
        del self._answers[answer.sequence.id]
        self.scheduler.finish(answer.sequence)
        answer.reason = reason
        if answer.job.over:
            self._close(answer.job, reason)
        answer.end(reason)

    # ---------------------------------------------------------------- its own books

    def check(self) -> None:
        """While nothing runs: recount the pages, of which none is used. What doesn't add up is logged, and there are
        new ones."""
        try:
            self.scheduler.check()
            if not self.jobs and self.scheduler.pages.used:
                raise Inconsistent(f"{self.scheduler.pages.used} pages are used and nothing runs")
        except Inconsistent as error:
            self._anew(error)

    def _anew(self, error: Exception) -> None:
        """The books are wrong: end what runs, and begin with empty pages. It raises the error where that has not helped
        before."""
        self.counts.faults += 1
        self._strikes += 1
        log.error("the engine begins anew: %s: %s", type(error).__name__, error, exc_info=error)
        self._before += self._counted()
        self.scheduler = self._fresh()
        self._answers.clear()
        for job in list(self.jobs.values()):
            self.fail(job, error, 500)
        self.view = self._look()
        if self._strikes >= MOST_STRIKES:
            raise error

    def _fresh(self) -> Scheduler:
        return Scheduler(Pages(self._memory.pages, self._memory.page), **self._sizes)

    def _look(self) -> View:
        made, pages = self.scheduler, self.scheduler.pages
        return View(
            running=made.running,
            waiting=made.waiting,
            pages=pages.count,
            used=pages.used,
            free=pages.free,
            cached=pages.cached,
            page=pages.size,
            usage=pages.used / pages.count,
            waste=made.waste(),
            mean_waste=made.mean_waste,
            **(self._before + self._counted()),
        )

    def _counted(self) -> Counter[str]:
        """By this scheduler."""
        made = self.scheduler
        return Counter(
            prefix_queries=made.queries, prefix_hits=made.hits, preemptions=made.preemptions, steps=made.steps
        )


def salt_of(tenant: str, salt: str) -> bytes:
    """What tells prompts apart that may not share pages: another tenant's, or of another salt."""
    parts = (hashlib.blake2b(part.encode(errors="surrogatepass"), digest_size=16).digest() for part in (tenant, salt))
    return b"".join(parts)
