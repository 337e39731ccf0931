"""Stopping a run by a signal, wherever it is: between two steps, waiting for data, in an evaluation.

The first SIGTERM, SIGINT or SIGUSR1 raises Stopped where the main thread is, but not inside `whole()`, which ends
first: an optimizer's step and a checkpoint are never left half done. What takes long in there may be `interruptible()`:
an evaluation, between the weights' change for their average and back. A second one, at least a second later, ends the
process at once. (One Ctrl-C often arrives twice: from the terminal and from a launcher.)
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 1.0  # seconds from which a second signal means: now


class Stopped(BaseException):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} arrived")
        self.number = number


class Signals:
    """Handlers for a run, as a context. `raises` False: signals are only noted (`got`), for runs of several processes,
    which stop together at a step."""

    def __init__(self, raises: bool = True, exit_now: Callable[[int], Any] = os._exit) -> None:
        self.raises, self.exit_now = raises, exit_now
        self.got: int | None = None
        self._at = 0.0
        self._held = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._on) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.got is not None:
            if time.monotonic() - self._at >= AGAIN:
                self.exit_now(128 + number)
            return
        self.got, self._at = number, time.monotonic()
        if self.raises and not self._held:
            raise Stopped(number)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What must not be interrupted. A signal that arrived inside raises Stopped at the end."""
        fresh = self.got is None
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self.raises and not self._held and fresh and self.got is not None:
            raise Stopped(self.got)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What may be given up at any point: signals raise Stopped inside it, in `whole()` and in runs of several
        processes too, and one that was noted does at once."""
        before = self.raises, self._held
        try:
            self.raises, self._held = True, 0
            if self.got is not None:
                raise Stopped(self.got)
            yield
        finally:
            self.raises, self._held = before
