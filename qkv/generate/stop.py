"""Text out of tokens, up to the first stop text."""

from collections.abc import Sequence
from typing import Protocol

from qkv.errors import InputError


class Decoder(Protocol):
    """Tokens to text, one at a time: "" while a character's bytes are still incomplete."""

    def push(self, token: int) -> str: ...
    def finish(self) -> str: ...


class Text:
    """One answer's text as its tokens arrive. An end that may yet become a stop text is held back.

    The answer is cut where the first stop text is complete (of those complete at the same character, the longest),
    so it doesn't matter how the tokens divide the text. Without a decoder the text is empty."""

    def __init__(self, decoder: Decoder | None, stops: Sequence[str]) -> None:
        self.decoder, self.stops = decoder, tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """What can be shown now that the token is there. `stopped` is then true if a stop text was completed."""
        if self.decoder is None:
            return ""
        try:
            return self._show(self.decoder.push(token))
        except InputError:  # a padding row of the embedding: a token without text, as transformers decodes it too
            return ""

    def finish(self) -> str:
        """No more tokens come: what was held back, an incomplete character as U+FFFD."""
        shown = self._show(self.decoder.finish()) if self.decoder is not None and not self.stopped else ""
        shown, self.held = shown + self.held, ""
        return shown

    def _show(self, piece: str) -> str:
        text = self.held + piece
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the text's end that could be the stop's beginning."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
