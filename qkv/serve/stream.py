"""From the engine's thread to the event loop, and from there to a client as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from qkv.serve.ask import Ask
from qkv.serve.engine import Engine
from qkv.serve.errors import Gone, Refused, envelope, told
from qkv.serve.events import Began, Ended, Event, Failed, Stopped
from qkv.serve.options import Options
from qkv.serve.served import lasts

LATER = 5.0  # seconds beyond a request's time, in which its error can still be sent


@dataclass(frozen=True)
class Got:
    """An event of ask number `ask`."""

    ask: int
    event: Event


class Answers:
    """The events of a request's asks, as they come. It belongs to one request: `start` it, iterate, `close` it.

    Whatever ends it early (the client goes away, the time is up, a route raises) cancels what still runs; what has
    ended by itself is not cancelled. Raises Gone, Refused (504), and what a Failed says."""

    def __init__(self, engine: Engine, asks: Sequence[Ask], request: Request, options: Options) -> None:
        self.engine, self.asks, self.options = engine, asks, options
        self.seconds = options.request_seconds
        self._request, self._loop = request, asyncio.get_running_loop()
        self._queue: asyncio.Queue[Got | Gone] = asyncio.Queue()
        self._open = {i: max(ask.n, 1) for i, ask in enumerate(asks)}  # answers that are still to end
        self._deadline = self._loop.time() + options.request_seconds
        self._watch: asyncio.Task[None] | None = None
        self._first: list[Got] = []

    async def start(self) -> None:
        """Hand the asks over and wait until the engine has taken one, or raise what it failed with: only then is it
        known with which status to begin."""
        self._watch = asyncio.create_task(self._listen())
        try:
            await asyncio.to_thread(self._submit)  # it goes through every token: a long prompt would hold up the loop
            self._first.append(await self._next())
        except BaseException:
            self.close()
            raise

    def _submit(self) -> None:
        for i, ask in enumerate(self.asks):
            if i in self._open:  # else it was closed meanwhile
                self.engine.submit(ask, self._deliver(i))

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def note(self, total: "Total") -> None:
        """Put into the log's line what was used."""
        self._request.state.record.update(total.record())

    def close(self) -> None:
        """Cancel what is still open. Twice is once."""
        if self._watch is not None:
            self._watch.cancel()
        for i in self._open:
            self.engine.cancel(self.asks[i].id)
        self._open.clear()

    def __aiter__(self) -> AsyncIterator[Got]:
        return self._events()

    async def _events(self) -> AsyncIterator[Got]:
        while self._first or self._open:
            yield self._first.pop(0) if self._first else await self._next()

    async def _next(self) -> Got:
        try:
            async with asyncio.timeout_at(self._deadline):
                got = await self._queue.get()
        except TimeoutError:
            raise lasts(self.options, "the answer") from None
        if isinstance(got, Gone):
            raise got
        if isinstance(got.event, Failed):
            self._open.pop(got.ask, None)
            if got.event.status == 500 and isinstance(got.event.error, Stopped):
                raise Refused(500, "the engine failed while it worked on this request") from got.event.error
            raise got.event.error
        if isinstance(got.event, Ended):
            if got.event.reason == "cancelled":  # by nobody here: nothing is read after `close`
                raise Stopped("the server is stopping, and this answer didn't end in time")
            self._open[got.ask] -= 1
            if not self._open[got.ask]:
                del self._open[got.ask]
        return got

    def _deliver(self, i: int) -> Any:
        def deliver(event: Event) -> None:  # in the engine's thread; a loop that is closed raises, which cancels
            self._loop.call_soon_threadsafe(self._queue.put_nowait, Got(i, event))

        return deliver

    async def _listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(Gone())


@dataclass
class Total:
    """What a request has used: tokens of its prompts (each counted once, however many answers), of them cached, of all
    answers; and the times of the first ask."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    first: float | None = None
    queued: float | None = None
    reason: str | None = None

    def add(self, event: Event) -> None:
        """Count an event in."""
        if isinstance(event, Began):
            self.prompt += event.prompt
            self.cached += event.cached
        elif isinstance(event, Ended):
            self.completion += event.usage.completion
            self.reason = event.reason
            if self.queued is None:
                self.first, self.queued = event.times.first, event.times.queued

    def usage(self) -> dict[str, Any]:
        """As the API has it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    def record(self) -> dict[str, Any]:
        """For the log's line."""
        times = {
            name: None if t is None else round(t, 4) for name, t in (("queued", self.queued), ("first", self.first))
        }
        tokens = {"prompt_tokens": self.prompt, "cached_tokens": self.cached, "completion_tokens": self.completion}
        return {**tokens, **times, "reason": self.reason}


class Reply(Protocol):
    """Makes an answer of events: in one piece, or in chunks."""

    async def whole(self, answers: Answers) -> dict[str, Any]: ...
    def chunks(self, answers: Answers) -> AsyncGenerator[dict[str, Any]]: ...


async def answered(reply: Reply, answers: Answers, streamed: bool | None) -> Response:
    """The response of such a reply, once the engine has begun. Raises as `Answers`."""
    await answers.start()
    if streamed:
        return EventStream(answers, reply.chunks(answers))
    async with answers:
        return JSONResponse(await reply.whole(answers))


class EventStream(Response):
    """Server-sent events: `data: {…}` each, `data: [DONE]` last. An error on the way is a data event of its own.

    They are ASCII: many clients cut lines at U+2028 and its like too, which JSON may hold as they are.

    `chunks` are JSON-ready dicts made of the answers. A client that goes away ends it quietly; one that doesn't read is
    cut off when the request's time is up."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, chunks: AsyncGenerator[dict[str, Any]]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.answers, self.chunks = answers, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.answers.seconds + LATER):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._all(scope, send)
        except TimeoutError:
            scope["state"]["failure"] = Refused(504, "the client did not read its answer in time")
        finally:
            await self.chunks.aclose()
            self.answers.close()

    async def _all(self, scope: Scope, send: Send) -> None:
        async def event(data: str, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": more})

        try:
            async for chunk in self.chunks:
                await event(json.dumps(chunk, separators=(",", ":")))
        except Gone:
            scope["state"]["record"]["reason"] = "disconnected"
            return
        except Exception as error:  # the status is sent: all that is left is to say so in the stream
            scope["state"]["failure"] = error
            status, message, param, code = told(error)
            await event(json.dumps(envelope(status, message, param=param, code=code)))
        await event("[DONE]", more=False)
