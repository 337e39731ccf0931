"""The engine: one model and all that is asked of it, from any thread.

engine = Engine(qkv.load("smollm2"), name="smollm2")
engine.start()
engine.submit(Ask("1", ids, engine.settings(max_tokens=20)), print)  # prints Began, Piece, …, Ended
engine.close(grace=10)
"""

from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter
from typing import TypeVar

from qkv import spec
from qkv.model import Model
from qkv.serve.ask import Ask
from qkv.serve.batcher import Batcher
from qkv.serve.events import Event
from qkv.serve.guide import Guides
from qkv.serve.intake import Intake
from qkv.serve.job import Job
from qkv.serve.loop import Loop
from qkv.serve.memory import plan_memory
from qkv.serve.scheduler import BUDGET, MOST_RUNNING, MOST_WAITING
from qkv.serve.state import Counts, Finished, State, View

T = TypeVar("T")


class Engine:
    """Serves a model. `generates`: False for one that only labels or embeds, which takes no `submit`, only `call`.

    limits: what a request may ask for. memory: what is taken. settings: a request's, as `Intake.settings`. The
    arguments, and InputError: as of `plan_memory`, `Scheduler` and `Intake`; `most_waiting` requests and `most_calls`
    calls may wait, and a grammar may take `grammar_seconds` to compile. The cache's memory is taken here.

    Everything of the scheduler, the pages and the model happens in one thread, the loop's."""

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        cache: int | str | None = None,
        page: int = 16,
        budget: int = BUDGET,
        most_running: int = MOST_RUNNING,
        most_waiting: int = MOST_WAITING,
        most_calls: int = 64,
        seed: int | None = None,
        grammar_seconds: float = 1.0,
    ) -> None:
        self.model, self.name = model, name
        self.generates = model.decoder is not None and isinstance(model.spec.head, spec.LMHead)
        self.memory = plan_memory(model, cache=cache, page=page, most_running=most_running, generates=self.generates)
        self._intake = Intake(model, self.memory, seed)
        self.limits, self.settings = self._intake.limits, self._intake.settings
        self._counts = Counts()
        batcher = None
        if self.generates:
            sizes = {"budget": budget, "most_running": most_running, "most_waiting": most_waiting}
            batcher = Batcher(model, self.memory, self._counts, **sizes)
        guides = Guides[Job](model.tokenizer, model.spec.vocab, grammar_seconds)
        self._batcher = batcher
        self._loop = Loop(name, model, batcher, guides, self._counts, most_waiting, most_calls)

    def start(self) -> None:
        """Start the loop, which first warms up: `ready` says when the first token was made. InputError: it was started
        before."""
        self._loop.start(self._intake.warm_up() if self.generates else None)

    def close(self, grace: float = 0) -> None:
        """Take nothing new, give what runs so many seconds to end, cancel the rest, and wait until the loop is over. Of
        several calls the shortest grace counts."""
        self._loop.close(grace)

    def submit(self, ask: Ask, deliver: Callable[[Event], None]) -> None:
        """Queue a request; `deliver` gets its events in the engine's thread, which it must not hold up. InputError: the
        request is wrong, or its id is taken. Full: too many wait. Stopped: the engine isn't running."""
        self._loop.refuse()
        self._loop.add(self._intake.job(ask, deliver))

    def cancel(self, id: str) -> None:
        """End a request; its pages are free at the next step. One that isn't there (any more) is no matter."""
        self._loop.cancel(id)

    def call(self, work: Callable[[Model], T]) -> "Future[T]":
        """Do a short piece of work with the model between two steps; what it gives or raises is in the future. Full:
        too much waits already. Stopped: the engine isn't running."""
        return self._loop.call(work)

    def watch(self, observer: Callable[[Finished], None]) -> None:
        """Tell of each request that is over, in the engine's thread."""
        self._loop.observers.append(observer)

    def heartbeat(self) -> float:
        """Seconds since the loop last turned, which it does while there is nothing to do too."""
        return perf_counter() - self._loop.beat

    @property
    def alive(self) -> bool:
        """Does the loop run?"""
        return self._loop.alive

    @property
    def ready(self) -> bool:
        """Was the first token made?"""
        return self._loop.ready

    @property
    def failure(self) -> BaseException | None:
        """What ended the loop, if something did."""
        return self._loop.failure

    def state(self) -> State:
        """What there is to know now; cheap."""
        counts, view = self._counts, self._batcher.view if self._batcher else View()
        return State(
            name=self.name,
            ready=self.ready,
            alive=self.alive,
            heartbeat=self.heartbeat(),
            tokens_per_second=counts.rate(),
            prompt_tokens=counts.prompt_tokens,
            generated_tokens=counts.generated_tokens,
            cached_tokens=counts.cached_tokens,
            submitted=counts.submitted,
            finished=dict(counts.finished),
            faults=counts.faults,
            step=self._batcher.runner.reader.how if self._batcher else "torch (it doesn't generate)",
            **vars(view),
        )
