"""What an engine says of itself, from any thread, and of each request once it is over."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

RECENT = 5.0  # seconds that a rate looks back


@dataclass(frozen=True)
class View:
    """The queue and the pages after a step. running, waiting: sequences. pages: all there are, used + free; cached:
    those of the free ones that a prompt may find again; page: tokens in one. usage: used / pages. waste: slots of used
    pages without a token, of all their slots, now and in the mean of all steps. These only grow: prompt tokens looked
    for in the prefix cache and found, preemptions, steps."""

    running: int = 0
    waiting: int = 0
    pages: int = 0
    used: int = 0
    free: int = 0
    cached: int = 0
    page: int = 0
    usage: float = 0.0
    waste: float = 0.0
    mean_waste: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    steps: int = 0


@dataclass(frozen=True)
class State(View):
    """An engine now. heartbeat: seconds since its loop turned. tokens_per_second: chosen in the last seconds. These
    only grow: tokens of prompts that were read and those that the prefix cache had, tokens chosen, requests taken;
    `finished`: requests by how they ended (stop, length, cancelled, failed); faults: errors of the engine's own that it
    survived. step: what computes the steps, native code or torch, and why."""

    name: str = ""
    ready: bool = False
    alive: bool = False
    heartbeat: float = 0.0
    tokens_per_second: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    submitted: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)
    faults: int = 0
    step: str = ""


@dataclass(frozen=True)
class Finished:
    """A request that is over. `n` answers of `completion` tokens in all; `reason` as the last of them ended, or failed
    with an error. Seconds: in the queue, reading the prompt, from the first token to the end, from submission to the
    first token (None: there is none) and to the end; `gaps` between tokens of the same answer. arrived: since 1970."""

    id: str
    tenant: str
    prompt: int
    cached: int
    completion: int
    n: int
    reason: str
    error: str | None
    arrived: float
    queued: float
    prefill: float
    decode: float
    first: float | None
    total: float
    gaps: tuple[float, ...]


class Counts:
    """What the loop counts; it alone changes it."""

    def __init__(self) -> None:
        self.submitted = self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.faults = 0
        self.finished = Counter({"stop": 0, "length": 0, "cancelled": 0, "failed": 0})
        self._recent: deque[tuple[float, int]] = deque(maxlen=4096)

    def step(self, tokens: int) -> None:
        """One gave so many tokens, which are counted already."""
        self._recent.append((perf_counter(), tokens))

    def rate(self) -> float:
        """Tokens a second lately. From any thread."""
        now = perf_counter()
        recent = [(at, count) for at, count in tuple(self._recent) if now - at < RECENT]
        span = min(RECENT, now - recent[0][0]) if len(recent) > 1 else RECENT
        return sum(count for _, count in recent) / max(span, 0.1)
