"""Engines and batchers of tiny models, and what they tell."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import qkv
from qkv import spec
from qkv.adapt.quantize import quantize
from qkv.generate.result import Generation
from qkv.generate.settings import Settings
from qkv.serve.ask import Ask, answer_seed
from qkv.serve.batcher import Batcher
from qkv.serve.engine import Engine
from qkv.serve.events import Began, Ended, Event, Failed, Piece, Prompt, Scored
from qkv.serve.intake import Intake
from qkv.serve.job import Job
from qkv.serve.memory import plan_memory
from qkv.serve.state import Counts
from tests.generate.tiny import Bytes, model_spec, pair_spec

PAGE = 16


def filled(model: spec.Model, seed: int = 0) -> qkv.Model:
    """With random weights whose greedy texts vary, and a tokenizer of bytes."""
    torch.manual_seed(seed)
    made = qkv.Model(model).eval()
    for name, weight in made.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if "tokens" in name else 0.3)
    made.tokenizer = Bytes()  # type: ignore[assignment]
    return made


@cache
def model(kind: str = "packed") -> qkv.Model:
    """ "packed": native steps, bit for bit the same in any batch. "float32": torch where there are many rows. "window":
    a text passes it soon. "pair": an encoder–decoder."""
    if kind == "pair":
        return filled(pair_spec("relative"))
    if kind == "packed":
        block = spec.Block(spec.Attention(2, 1, position=spec.Rotary()), spec.Gated(64, "silu"), spec.RMS())
        made = filled(spec.Model(257, 64, spec.Stack((block,), 2, spec.RMS()), context=256))
        quantize(made, "int8")
        return made
    return filled(model_spec(**({"attention": {"mask": spec.Window(20)}} if kind == "window" else {})))


def wish(**changes: Any) -> Settings:
    """Greedy, eight tokens, and nothing but its length ends it."""
    return Settings().replace(**{"max_tokens": 8, **changes})


@dataclass
class Told:
    """The events of one request."""

    events: list[Event] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    n: int = 1

    def __call__(self, event: Event) -> None:
        assert not self.over.is_set(), "something comes after the end"
        self.events.append(event)
        if isinstance(event, Failed) or len(self.ended) == max(self.n, 1):
            self.over.set()

    @property
    def ended(self) -> dict[int, Ended]:
        """By answer."""
        return {event.index: event for event in self.events if isinstance(event, Ended)}

    @property
    def failed(self) -> Failed | None:
        """Its failure, which is the last thing it tells."""
        return next((event for event in self.events if isinstance(event, Failed)), None)

    @property
    def began(self) -> Began:
        """It is the first."""
        assert isinstance(self.events[0], Began)
        return self.events[0]

    @property
    def prompt(self) -> tuple[Scored, ...]:
        """The prompt scored, which comes second."""
        assert isinstance(self.events[1], Prompt)
        return self.events[1].tokens

    def scored(self, index: int = 0) -> list[Scored]:
        """An answer's tokens."""
        pieces = (event for event in self.events if isinstance(event, Piece) and event.index == index)
        return [token for piece in pieces for token in piece.tokens]

    def tokens(self, index: int = 0) -> list[int]:
        """Their ids."""
        return [one.token for one in self.scored(index)]

    def text(self, index: int = 0) -> str:
        """An answer's text."""
        return "".join(event.text for event in self.events if isinstance(event, Piece) and event.index == index)

    def reason(self, index: int = 0) -> str:
        """Why an answer ended."""
        return self.ended[index].reason


class Bench:
    """A batcher without a thread: `ask`, then `run` turn by turn."""

    def __init__(self, kind: str = "packed", tokens: int = 1024, **options: Any) -> None:
        self.model = model(kind)
        memory = plan_memory(self.model, cache=tokens, page=PAGE)
        self.intake, self.counts = Intake(self.model, memory, seed=0), Counts()
        self.batcher = Batcher(self.model, memory, self.counts, **options)
        self.over: list[tuple[Job, str, Exception | None]] = []
        self.batcher.over = lambda *what: self.over.append(what)
        self.count = 0

    def ask(self, prompt: Any, settings: Settings | None = None, id: str = "", **fields: Any) -> Told:
        """Queue a request."""
        self.count += 1
        ask = Ask(id or str(self.count), tuple(prompt), settings or wish(), **fields)
        told = Told(n=ask.n)
        self.batcher.add(self.intake.job(ask, told))
        return told

    def run(self, turns: int = 10_000) -> int:
        """Until there is nothing left to do → turns that there were. Then all pages are free."""
        done = next((turn for turn in range(turns) if not self.batcher.turn()), turns)
        if not self.batcher.jobs:
            self.clean()
        return done

    def clean(self) -> None:
        """Nothing is held any more."""
        assert not self.batcher.jobs
        assert self.batcher.scheduler.pages.used == 0
        self.batcher.check()
        assert self.counts.faults == 0


def alone(kind: str, prompt: Any, settings: Settings, index: int = 0) -> Generation:
    """What `generate` gives for answer `index` of a request."""
    changes = {name: getattr(settings, name) for name in settings.sources if settings.source(name) == "given"}
    changes["stop_tokens"] = settings.stop_tokens
    if settings.seed is not None:
        changes["seed"] = answer_seed(settings.seed, index)
    found = model(kind).generate(list(prompt), **changes)
    assert isinstance(found, Generation)
    return found


@contextmanager
def engine(kind: str = "packed", *, start: bool = True, **options: Any) -> Iterator[Engine]:
    """A running engine; afterwards all its pages must be free."""
    made = Engine(model(kind), name=kind, **{"cache": 1024, "seed": 0, **options})
    if start:
        made.start()
    try:
        yield made
    finally:
        made.close()
    assert not made.alive
    assert made.state().used == 0


def submit(to: Engine, id: str, prompt: Any, settings: Settings | None = None, **fields: Any) -> Told:
    """A request, and who hears of it."""
    told = Told(n=fields.get("n", 1))
    to.submit(Ask(id, tuple(prompt), settings or wish(), **fields), told)
    return told


def waited(*told: Told, seconds: float = 30.0) -> None:
    """Until all are over."""
    for one in told:
        assert one.over.wait(seconds), one.events
