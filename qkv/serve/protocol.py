"""uvicorn's HTTP protocol with bounds on what a connection may do before there is a request.

A client that sends its headers drop by drop, or nothing, is cut off after a while, and where many connections are open
the longest idle one makes room for a new one: ten thousand idle ones don't keep anybody out. h11 is taken, not
httptools, because it bounds unfinished headers.
"""

import asyncio
from collections import OrderedDict
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from qkv.serve.options import Options

LATER = 10.0  # seconds beyond a request's time, after which a client that doesn't read is cut off
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def protocol(options: Options) -> type[H11Protocol]:
    """The protocol with these options; its connections know of each other."""
    idle: OrderedDict[Guarded, None] = OrderedDict()  # the longest idle first

    class Bound(Guarded):
        pass

    Bound.options, Bound.idle = options, idle
    return Bound


class Guarded(H11Protocol):
    """A connection with a clock: for the next request's headers while idle, for the whole request while busy."""

    options: Options
    idle: "OrderedDict[Guarded, None]"
    clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A new connection: an idle one makes room for it, or it is refused."""
        super().connection_made(transport)
        if len(self.connections) > self.options.most_connections:
            if not self.idle:
                transport.write(_BUSY)
                transport.close()
                return
            next(iter(self.idle)).cut()
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes; once they make a request, its time runs."""
        super().data_received(data)
        if self in self.idle and self._busy():
            self._forget()
            self._set(self.options.request_seconds + LATER)

    def on_response_complete(self) -> None:
        """An answer is out: the connection waits for the next request, or has it already."""
        self._forget()
        super().on_response_complete()
        if self._busy():
            self._set(self.options.request_seconds + LATER)
        elif not self.transport.is_closing():
            self._rest()

    def cut(self) -> None:
        """Close at once, whatever is still to be sent."""
        self._forget()
        self.transport.abort()

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _rest(self) -> None:
        self.idle[self] = None
        self._set(self.options.header_seconds)

    def _forget(self) -> None:
        self.idle.pop(self, None)
        if self.clock is not None:
            self.clock.cancel()

    def _set(self, seconds: float) -> None:
        if self.clock is not None:
            self.clock.cancel()
        self.clock = self.loop.call_later(seconds, self.cut)
