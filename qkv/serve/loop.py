"""The engine's thread: what comes in from others, and turn by turn what becomes of it.

    take what came in (requests, cancellations) → one call, if there is any → a batcher's turn → …

What goes wrong with a request or a call is told to whoever asked for it, and the loop goes on. If it can't, `failure`
says why, and everyone is told that it is over.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

import torch

from qkv.errors import InputError
from qkv.model import Model
from qkv.nn.modes import evaluating
from qkv.serve.batcher import Batcher
from qkv.serve.events import Stopped
from qkv.serve.guide import Guides
from qkv.serve.job import Job
from qkv.serve.scheduler import Full
from qkv.serve.state import Counts, Finished

T = TypeVar("T")
IDLE, COMPILING = 0.5, 0.005  # seconds between looks at the clock while there is nothing to do
log = logging.getLogger(__name__)


class Loop:
    """beat: when it last turned. ready: the first token was made. failure: what ended it, if something did. observers:
    told of each request that is over. batcher: None where the model doesn't generate."""

    def __init__(
        self,
        name: str,
        model: Model,
        batcher: Batcher | None,
        guides: Guides[Job],
        counts: Counts,
        most_waiting: int,
        most_calls: int,
    ) -> None:
        if min(most_waiting, most_calls) < 1:
            raise InputError(f"{most_waiting} requests and {most_calls} calls that may wait: each must be at least 1")
        self.name, self.model, self.most_waiting, self.most_calls = name, model, most_waiting, most_calls
        self.observers: list[Callable[[Finished], None]] = []
        self.beat, self.ready = perf_counter(), False
        self.failure: BaseException | None = None
        self._batcher, self._guides, self._counts = batcher, guides, counts
        if batcher is not None:
            batcher.over = self._over
        self._inbox: SimpleQueue[Job | str | None] = SimpleQueue()
        self._lock = threading.Lock()  # of these, which other threads change
        self._jobs: dict[str, Job] = {}
        self._calls: deque[tuple[Callable[[Model], Any], Future[Any]]] = deque()
        self._open, self._until = False, float("inf")
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------- from any thread

    @property
    def alive(self) -> bool:
        """Does it run?"""
        return self._thread is not None and self._thread.is_alive()

    def start(self, first: Job | None) -> None:
        """Run, with this job before all others. InputError: it was started before."""
        with self._lock:
            if self._thread is not None:
                raise InputError(f"the engine {self.name!r} was started before: make another one")
            self._thread = threading.Thread(target=self._run, args=(first,), name=f"qkv {self.name}", daemon=True)
            self._open, self.beat = True, perf_counter()
            self._thread.start()

    def close(self, grace: float) -> None:
        """As `Engine.close`."""
        with self._lock:
            self._open, self._until = False, min(self._until, perf_counter() + grace)
        self._inbox.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def refuse(self) -> None:
        """Stopped: it takes nothing."""
        if not self._open:
            why = "has failed" if self.failure is not None else "is closing" if self.alive else "isn't running"
            raise Stopped(f"the engine {self.name!r} {why}")

    def add(self, job: Job) -> None:
        """As `Engine.submit`."""
        with self._lock:
            self.refuse()
            if job.ask.id in self._jobs:
                raise InputError(f"id: a request {job.ask.id!r} is running already")
            if sum(other.began is None for other in self._jobs.values()) >= self.most_waiting:
                raise Full(f"{self.most_waiting} requests are waiting already; try again later")
            self._jobs[job.ask.id] = job
            self._counts.submitted += 1
            self._inbox.put(job)

    def cancel(self, id: str) -> None:
        """As `Engine.cancel`."""
        self._inbox.put(id)

    def call(self, work: Callable[[Model], T]) -> "Future[T]":
        """As `Engine.call`."""
        future: Future[T] = Future()
        with self._lock:
            self.refuse()
            if len(self._calls) >= self.most_calls:
                raise Full(f"{self.most_calls} calls are waiting already; try again later")
            self._calls.append((work, future))
        self._inbox.put(None)
        return future

    # ---------------------------------------------------------------- in its own thread

    def _run(self, first: Job | None) -> None:
        try:
            self._warm_up(first)
            busy, checked = True, True
            while not self._through():
                self._beat()
                came = self._take(0 if busy else COMPILING if self._guides.busy else IDLE)
                busy = self._one_call() | (self._batcher is not None and self._batcher.turn())
                checked = checked and not busy
                if not (came or busy or checked or self._batcher is None):
                    self._batcher.check()
                    checked = True
        except BaseException as error:
            self.failure = error
            log.critical("the engine %r has failed", self.name, exc_info=error)
        finally:
            self._fall()

    def _warm_up(self, first: Job | None) -> None:
        """The first step, which also makes what is made once. It raises what goes wrong with it."""
        if first is None or self._batcher is None:
            with torch.no_grad(), evaluating(self.model):
                self.model([[0]])
        else:
            self._batcher.warm_up(first, self._beat)
        self.ready = True

    def _beat(self) -> None:
        self.beat = perf_counter()

    def _through(self) -> bool:
        with self._lock:
            return not self._open and (perf_counter() >= self._until or not (self._jobs or self._calls))

    def _take(self, wait: float) -> bool:
        """All that came in, and the grammars that are ready; wait so long for the first → was there any?"""
        came = False
        try:
            while True:
                item = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
                came, wait = True, 0
                self._enter(item)
        except Empty:
            pass
        for job, found in self._guides.done():
            came = True
            if isinstance(found, Exception):
                self._over(job, "failed", found)
                job.fail(found, 429 if isinstance(found, Full) else 400)
            elif self._batcher is not None:
                for answer in job.answers:
                    answer.held_to(found.guide(answer.writer.request.settings.ends))
                self._batcher.add(job)
        return came

    def _enter(self, item: Job | str | None) -> None:
        if self._batcher is None or item is None:
            return
        if isinstance(item, Job):
            if item.ask.grammar is not None and item.ask.n:
                self._guides.begin(item, item.ask.grammar)
            else:
                self._batcher.add(item)
        elif (job := self._jobs.get(item)) is not None:
            self._drop(job)

    def _drop(self, job: Job) -> None:
        """Cancel a job, wherever it is."""
        if self._batcher is not None and job.ask.id in self._batcher.jobs:
            self._batcher.cancel(job.ask.id)
        else:
            self._guides.forget(job)
            self._over(job, "cancelled", None)
            job.cancel()

    def _one_call(self) -> bool:
        try:
            work, future = self._calls.popleft()
        except IndexError:
            return False
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(self.model))
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
        return True

    def _over(self, job: Job, reason: str, error: Exception | None) -> None:
        with self._lock:
            self._jobs.pop(job.ask.id, None)
        self._counts.finished[reason] += 1
        record = job.finished(reason, error)
        for observer in self.observers:
            try:
                observer(record)
            except Exception:
                log.exception("an observer of requests raised")

    def _fall(self) -> None:
        """Nothing runs any more: tell all who wait."""
        with self._lock:
            self._open = False
            jobs, calls = list(self._jobs.values()), list(self._calls)
            self._calls.clear()
        stopped = Stopped(f"the engine {self.name!r} {'was closed' if self.failure is None else 'has failed'}")
        for job in jobs:
            if self.failure is None:
                self._drop(job)
            else:
                self._over(job, "failed", stopped)
                job.fail(stopped, 500)
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(stopped)
        self._guides.close()
