"""A progress bar for a download that something else does: it watches the bytes that have arrived."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REFRESH = 0.2  # seconds between looks at the files
LINE_EVERY = 5.0  # seconds between plain lines where standard error is no terminal


@contextmanager
def watching(
    title: str, done: Callable[[], int], total: Callable[[], int | None], *, enabled: bool = True
) -> Iterator[None]:
    """Show `done()` of `total()` bytes (None: not known yet) on standard error while the body runs.

    A bar on a terminal, a plain line every five seconds elsewhere; nothing where not `enabled` or where torchrun's
    RANK is not 0. The functions are called from a thread of their own and must be cheap.
    """
    if not enabled or os.environ.get("RANK", "0") != "0":
        yield
        return
    show = _bar if sys.stderr.isatty() else _lines
    stop = threading.Event()
    thread = threading.Thread(target=show, args=(title, done, total, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def without_hub_bars() -> Iterator[None]:
    """huggingface_hub draws none of its bars, one per file, in the body; a user's own setting of them is left alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def megabytes(size: int) -> str:
    """`size` in bytes as text in MB (10^6 bytes), or GB from 1 GB up."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bar(title: str, done: Callable[[], int], total: Callable[[], int | None], stop: threading.Event) -> None:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        while not stop.wait(REFRESH):
            bar.update(task, completed=done(), total=total())
        bar.update(task, completed=done(), total=total())


def _lines(title: str, done: Callable[[], int], total: Callable[[], int | None], stop: threading.Event) -> None:
    start = time.monotonic()
    while True:
        finished = stop.wait(LINE_EVERY)
        have, size = done(), total()
        of = f" of {megabytes(size)} ({min(have / size, 1):.0%})" if size else ""
        print(f"{title}: {megabytes(have)}{of}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if finished:
            return
