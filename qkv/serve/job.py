"""A request at work: its answers, what its client is told, and how long all of it took."""

import logging
from collections.abc import Callable
from time import perf_counter, time

from torch import Tensor

from qkv.generate.request import Request
from qkv.generate.sample import Choice, log_probabilities
from qkv.generate.writer import Writer
from qkv.serve.ask import Ask
from qkv.serve.events import Began, Ended, Event, Failed, Piece, Prompt, Reason, Scored, Times, Usage
from qkv.serve.guide import Guide
from qkv.serve.sequence import Sequence
from qkv.serve.state import Finished

log = logging.getLogger(__name__)


class Job:
    """An `ask` and who is told of it. `requests`: one for each answer (of none: what reads the prompt)."""

    def __init__(self, ask: Ask, deliver: Callable[[Event], None], requests: list[Request]) -> None:
        self.ask = ask
        self.answers = [Answer(self, request) for request in requests]
        self.echo: list[Scored] = []
        self.deaf = False  # its client's callback has raised
        self.cached = 0
        self.arrived, self.since = perf_counter(), time()
        self.began: float | None = None
        self.read: float | None = None
        self.first: float | None = None
        self._deliver = deliver

    def tell(self, event: Event) -> None:
        """Pass an event on. A callback that raises hears no more, and the engine cancels the request."""
        if self.deaf:
            return
        try:
            self._deliver(event)
        except Exception:
            self.deaf = True
            log.exception("request %r: its callback raised; it is cancelled", self.ask.id)

    def begin(self, sequence: Sequence) -> None:
        """It is being read."""
        if self.began is None:
            self.began, self.cached = perf_counter(), sequence.cached
            self.tell(Began(len(self.ask.prompt), self.cached))

    @property
    def over(self) -> bool:
        """Have all answers ended?"""
        return all(answer.reason is not None for answer in self.answers)

    # ---------------------------------------------------------------- the prompt's own log-probabilities

    def unscored(self, start: int, count: int) -> int:
        """How many of the last of `count` tokens, read from place `start` on, say something of the prompt's that is not
        known yet."""
        if self.ask.echo_logprobs is None:
            return 0
        first = max(start, len(self.echo) - 1, 0)
        return start + count - first if first < min(start + count, len(self.ask.prompt) - 1) else 0

    def score(self, logits: Tensor, end: int) -> None:
        """What logits [N, V], behind the last of the sequence's first `end` tokens, say of the prompt's."""
        top = self.ask.echo_logprobs
        if top is None:
            return
        prompt = self.ask.prompt
        self.echo = self.echo or [Scored(prompt[0])]
        for place in range(len(self.echo), min(end + 1, len(prompt))):
            token, row = prompt[place], logits[place - 1 - end]
            self.echo.append(scored(Choice(token, *log_probabilities(row, token, top or True))))

    def prompt_read(self) -> None:
        """The whole prompt has been read, the first time."""
        self.read = perf_counter()
        if self.ask.echo_logprobs is not None:
            self.tell(Prompt(tuple(self.echo or [Scored(self.ask.prompt[0])])))

    # ---------------------------------------------------------------- its end

    def times(self) -> Times:
        """Until now."""
        now = perf_counter()
        began = self.began or now
        read = (self.read or now) - began
        first = None if self.first is None else self.first - self.arrived
        return Times(began - self.arrived, read, first, now - self.arrived)

    def finished(self, reason: str, error: Exception | None = None) -> Finished:
        """The record of it."""
        times, made = self.times(), [answer.made for answer in self.answers]
        return Finished(
            id=self.ask.id,
            tenant=self.ask.tenant,
            prompt=len(self.ask.prompt),
            cached=self.cached,
            completion=sum(made),
            n=self.ask.n,
            reason=reason,
            error=None if error is None else f"{type(error).__name__}: {error}",
            arrived=self.since,
            queued=times.queued,
            prefill=times.prefill,
            decode=0.0 if times.first is None else times.total - times.first,
            first=times.first,
            total=times.total,
            gaps=tuple(gap for answer in self.answers for gap in answer.gaps),
        )

    def cancel(self) -> None:
        """End what is open of it."""
        for answer in self.answers:
            if answer.reason is None:
                answer.end("cancelled")

    def fail(self, error: Exception, status: int) -> None:
        """Nothing more comes of it."""
        self.tell(Failed(error, status))


class Answer:
    """One answer of a job. `sequence`: what it is written to, once there is one; `reason`: why it has ended; None: it
    is open."""

    def __init__(self, job: Job, request: Request) -> None:
        self.job, self.index, self.writer = job, request.index, Writer(request)
        self.sequence: Sequence | None = None
        self.guide: Guide | None = None
        self.reason: Reason | None = None
        self.gaps: list[float] = []
        self._last: float | None = None
        self._held: list[Scored] = []

    @property
    def made(self) -> int:
        """Its tokens."""
        return self.writer.sampler.made

    def held_to(self, guide: Guide) -> None:
        """Before its first token: let a grammar say which tokens there may be."""
        self.guide = guide
        self.writer.sampler.processors.append(guide)

    def write(self, logits: Tensor, ids: list[int]) -> tuple[int, Reason | None]:
        """Choose the token behind ids by logits [V], and tell what can be shown → it, and why the answer ends, if it
        does. Raises as `Writer.write`."""
        choice, text, reason = self.writer.write(logits, ids)
        if self.guide is not None and reason is None:
            self.guide.advance(choice.token)
            if self.guide.done:
                text, reason = text + self.writer.text.finish(), "stop"
        now = perf_counter()
        if self._last is not None:
            self.gaps.append(now - self._last)
        self._last, self.job.first = now, self.job.first or now
        self._held.append(scored(choice))
        if text or reason is not None or self.writer.text.decoder is None:
            self._show(text)
        return choice.token, reason

    def end(self, reason: Reason) -> None:
        """It has ended."""
        self.reason = reason
        if reason == "cancelled" and self._held:
            self._show(self.writer.text.finish())
        usage = Usage(len(self.job.ask.prompt), self.job.cached, self.made)
        self.job.tell(Ended(self.index, reason, usage, self.job.times(), self.writer.sampler.seed))

    def _show(self, text: str) -> None:
        self.job.tell(Piece(self.index, text, tuple(self._held)))
        self._held = []


def scored(choice: Choice) -> Scored:
    """A choice as its event says it."""
    return Scored(choice.token, choice.logprob, choice.top or {})
