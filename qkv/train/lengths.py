"""Texts that are too long to train on whole: one answer for every objective, and never a silent one."""

from collections.abc import Sequence
from typing import Protocol

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Frame, Pieces
from qkv.tasks.windows import Limit, Window, cut, limit, truncate, windows
from qkv.train.recipe import OnLong

_WAYS: dict[OnLong, str] = {"truncate": "keeps its beginning", "drop": "leaves it out", "window": "takes it in parts"}


class Counts(Protocol):
    """Who counts: an Objective."""

    cut: int
    dropped: int


def most(model: spec.Model, length: int | None) -> Limit:
    """How many tokens a sample has at most: `batch.length`, or what the model can read where that is less."""
    own = limit(model)
    if length is None or (own.size is not None and own.size <= length):
        return own
    return Limit(length, "batch.length")


class Lengths:
    """What `on_long` makes of texts beyond the most. It counts in `counts`: `cut` and `dropped` texts.

    most: None: any length (packing cuts by itself). stride: tokens that two windows share (None: as `qkv.tasks` has
    it); 0: each token is in one window only, for objectives that learn from all of them. least: tokens of a text that a
    window has (`ranges`); where the last would have fewer, it begins earlier. ways: those that make sense for the
    objective; ConfigError for another."""

    def __init__(
        self,
        counts: Counts,
        how: OnLong,
        most: Limit | None,
        *,
        stride: int | None = 0,
        least: int = 1,
        ways: Sequence[OnLong] = ("truncate", "drop", "window"),
    ) -> None:
        if how != "error" and how not in ways:
            raise ConfigError(f"objective.on_long: {how!r} makes no sense here; say one of error, {', '.join(ways)}")
        given = most or Limit(None, "no limit")
        self.counts, self.how, self.ways, self.least = counts, how, ways, least
        self.limit = Limit(given.size, given.why, stride)

    def fits(self, tokens: int) -> bool:
        """Can so many tokens, special ones included, be read at once?"""
        return self.limit.size is None or tokens <= self.limit.size

    def ranges(self, tokens: int, added: int = 0, what: str = "the text") -> list[range]:
        """Which tokens of a text of so many become a sample, each beside `added` special ones: all, the first of them,
        parts, or none at all. InputError: it is too long, or the special ones leave no room."""
        if self.fits(tokens + added):
            return [range(tokens)]
        assert self.limit.size is not None
        room = self.limit.size - added
        if room < self.least:
            raise InputError(f"{what}: {added} special tokens leave no room in {self._said()}")
        if not self._goes_on(tokens + added, what):
            return []
        if self.how == "truncate":
            return [range(room)]
        parts = cut(tokens, room, self.limit.stride_in(room, what))
        return [*parts[:-1], range(min(parts[-1].start, tokens - self.least), tokens)]

    def framed(self, frame: Frame, texts: Sequence[Pieces], over: int = -1, what: str = "the text") -> list[Window]:
        """One text or two as the model reads them: whole, or as `on_long` says. Windows go over text `over` (-1: the
        last), the other one being in each; truncated, the longer one loses tokens first. InputError as `ranges`."""
        over %= len(texts)
        tokens = frame.added + sum(map(len, texts))
        if self.fits(tokens):
            return [Window(frame.join(*texts), range(len(texts[over])))]
        if not self._goes_on(tokens, what):
            return []
        if self.how == "window":
            return windows(frame, texts, over, self.limit, what)
        encoded = truncate(frame, texts, self.limit)
        return [Window(encoded, range(len(encoded.places(over))))]

    def _goes_on(self, tokens: int, what: str) -> bool:
        """Counts a text that is too long; False: it is left out."""
        if self.how == "error":
            ways = "; ".join(f'"{way}" {_WAYS[way]}' for way in self.ways)
            longer = ", or a larger batch.length" if self.limit.why == "batch.length" else ""
            raise InputError(
                f"{what} has {tokens} tokens; the most is {self._said()}. Say objective.on_long ({ways}){longer}"
            )
        self.counts.dropped += self.how == "drop"
        self.counts.cut += self.how != "drop"
        return self.how != "drop"

    def _said(self) -> str:
        return f"{self.limit.size} ({self.limit.why})"
