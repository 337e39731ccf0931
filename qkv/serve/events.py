"""What an engine tells of a request while it works on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qkv.errors import QkvError

Reason = Literal["stop", "length", "cancelled"]


class Stopped(QkvError):
    """An engine that takes no requests: it is not started, it is closing, or it has died."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token and its log-probability by the model itself (None: not asked for, or nothing comes before it), and the
    likeliest ids with theirs, best first ({}: not asked for)."""

    token: int
    logprob: float | None = None
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens: of the prompt, those of them that the prefix cache had, and of one answer (the eos included)."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: `queued` until it was admitted, `prefill` from then until the prompt was read, `first` until the first
    token (None: there is none) and `total` until the end, both since it was submitted."""

    queued: float
    prefill: float
    first: float | None
    total: float


@dataclass(frozen=True, slots=True)
class Began:
    """The request left the queue: tokens of its prompt, and how many of them the prefix cache had."""

    prompt: int
    cached: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt's tokens scored, all at once and before the first Piece; the first token has no log-probability."""

    tokens: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of answer `index`: text that can be shown, and the tokens chosen since its piece before. The text may
    be empty: the tokens have none, or it was to become a stop text or a whole character and the answer has ended."""

    index: int
    text: str
    tokens: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """Answer `index` is whole. `seed`: what it was drawn with; None: it is greedy."""

    index: int
    reason: Reason
    usage: Usage
    times: Times
    seed: int | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole request is over: nothing comes after it. `status`: as HTTP says whose fault it is (400, 500, 503)."""

    error: Exception
    status: int


Event = Began | Prompt | Piece | Ended | Failed
