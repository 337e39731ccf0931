"""The bar, and the lines that stand for it."""

import io
import sys

import pytest

from qkv.load import progress


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.watching("downloading", lambda: 30_000_000, lambda: 40_000_000):
        pass
    assert "30.0/40.0 MB" in terminal.getvalue()
