"""Listening: a socket, uvicorn's event loop, and what signals do.

The first SIGTERM or Ctrl-C stops taking connections and lets open answers finish, for `grace` seconds at most; the
process then ends with 0. A second one ends it at once.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from qkv.errors import InputError
from qkv.serve.app import build
from qkv.serve.engine import Engine
from qkv.serve.log import Lines, Log
from qkv.serve.options import Options
from qkv.serve.protocol import protocol

BACKLOG = 1024  # connections that the system holds until they are accepted
STUCK = 5.0  # seconds beyond the grace after which an engine that doesn't end is left behind
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(options: Options) -> socket.socket:
    """The socket to listen at. InputError: the address isn't there, or the port is taken."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host.strip("[]"), options.port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"can't listen at {options.host}, port {options.port}: {reason}; see --host and --port"
        ) from error


def address(listening: socket.socket) -> str:
    """Where a client reaches it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(engines: Mapping[str, Engine], options: Options, listening: socket.socket, log: Log) -> int:
    """Start the engines and answer requests until a signal says to stop. Returns the exit code: 0, or 1 where an engine
    failed to start or didn't end in time."""
    for name in ("uvicorn", "asyncio", "qkv"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Lines(log)], False
    for engine in engines.values():
        engine.start()
    server = Server(engines, options, log)
    server.run([listening])
    return server.code


class Server(uvicorn.Server):
    """uvicorn over engines: it ends with them, and they with it."""

    def __init__(self, engines: Mapping[str, Engine], options: Options, log: Log) -> None:
        config = uvicorn.Config(
            build(engines, options, log),
            loop="asyncio",
            http=protocol(options),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=options.max_headers,
            timeout_keep_alive=max(1, int(options.header_seconds)),
            timeout_graceful_shutdown=int(options.grace + STUCK) + 1,
        )
        super().__init__(config)
        self.engines, self.options, self.log = engines, options, log
        self.code = 0
        self._starting = dict(engines)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: has an engine become ready, or failed to?"""
        for name, engine in list(self._starting.items()):
            if engine.ready:
                del self._starting[name]
                self.log.write("start", step="ready", model=name, since=self.log.since())
            elif engine.failure is not None:
                self.log.write("failed", model=name, error=repr(engine.failure))
                self.code, self.should_exit = 1, True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, end the engines within the grace, and with them the open requests."""
        self.log.write("stop", grace=self.options.grace, open=len(self.server_state.tasks))
        last = time.monotonic() + self.options.grace + STUCK
        closing = [
            threading.Thread(target=engine.close, args=(self.options.grace,), daemon=True)
            for engine in self.engines.values()
        ]
        for thread in closing:
            thread.start()
        await super().shutdown(sockets)
        last = min(last, time.monotonic() + STUCK)  # what was open has ended, or had all its grace
        while any(thread.is_alive() for thread in closing) and time.monotonic() < last:
            await asyncio.sleep(0.02)
        if any(thread.is_alive() for thread in closing):
            self.log.write("failed", error="an engine did not end; it is left behind")
            self.code = 1
        self.log.write("stopped", code=self.code)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would end the process by the signal, not with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {which: signal.signal(which, self.handle_exit) for which in _SIGNALS}
        try:
            yield
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks to stop, the second stops."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
