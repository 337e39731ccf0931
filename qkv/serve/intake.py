"""From what is asked to a job: every check that needs the model, before the engine's thread hears of it."""

import copy
import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from qkv import spec
from qkv.errors import InputError
from qkv.generate.limits import check_generates, check_prompt
from qkv.generate.request import MakeDecoder, Request, requests
from qkv.generate.settings import Settings
from qkv.generate.stop import Decoder
from qkv.inputs.stream import StreamDecoder
from qkv.model import Model
from qkv.serve.ask import Ask, Limits, answer_seed
from qkv.serve.events import Event
from qkv.serve.job import Job
from qkv.serve.memory import Memory

LARGEST_SEED = 2**63 - 1
WARM = 8  # tokens: less than a page, so that none is kept for others


class Intake:
    """A model's counter. `seed`: where the seeds of those who give none come from (None: the system)."""

    def __init__(self, model: Model, memory: Memory, seed: int | None = None) -> None:
        self.model, self.limits = model, limits_of(model.spec, memory)
        self._seeds = random.SystemRandom() if seed is None else random.Random(seed)

    def settings(self, task: str | None = None, **changes: Any) -> Settings:
        """The model's own settings with these changes, but of a search only what is asked for; and where nobody says
        how long an answer may be, it is as long as fits."""
        found = self.model.settings(task, **{"beams": 1, **changes})
        return found.replace(max_tokens=None) if found.source("max_tokens") == "default" else found

    def job(self, ask: Ask, deliver: Callable[[Event], None]) -> Job:
        """InputError: what `Ask.check` says, or the model can't take this prompt or these settings."""
        check_generates(self.model.spec)
        ask.check(self.limits)
        if ask.grammar is not None and self.model.tokenizer is None:
            raise InputError("grammar: this model has no tokenizer, so no text can be held to one")
        return Job(ask, deliver, self._requests(ask))

    def warm_up(self) -> Job:
        """What an engine does first: two tokens, greedy."""
        count = max(1, min(WARM, self.limits.context - 2, self.limits.source or WARM))
        start = None if self.model.encoder is None else self.model.settings().start
        wish = Settings(max_tokens=min(2, self.limits.context - 1), ignore_eos=True, start=start)
        return self.job(Ask("warm-up", (0,) * count, wish), lambda event: None)

    def _requests(self, ask: Ask) -> list[Request]:
        wish = ask.settings
        if ask.n == 0:
            check_prompt(0, ask.prompt, wish, self.model.spec)
            return [Request(0, [], list(ask.prompt), 0, wish, None)]
        one = requests(self.model, [ask.prompt], [wish], self._decoder(), self.limits.context)[0]
        seed = wish.seed if wish.seed is not None else self._seeds.randint(0, LARGEST_SEED)
        wishes = [dataclasses.replace(wish, seed=answer_seed(seed, i)) for i in range(ask.n)]
        return [dataclasses.replace(one, index=i, settings=mine) for i, mine in enumerate(wishes)]

    def _decoder(self) -> MakeDecoder | None:
        """For the answers to one prompt, which is gone through once (5 µs a token)."""
        tokenizer, made = self.model.tokenizer, list[StreamDecoder]()
        if tokenizer is None:
            return None

        def decoder(before: Sequence[int]) -> Decoder:
            if not made:
                made.append(tokenizer.stream(context=before))
            return copy.deepcopy(made[0])

        return decoder


def limits_of(model: spec.Model, memory: Memory) -> Limits:
    """What a request may ask of a model whose cache is so large. An encoder's source may fill half of it."""
    if model.encoder is None:
        return Limits(context=memory.longest, vocab=model.vocab)
    half = memory.pages // 2 * memory.page
    position = model.encoder.embed.position
    lengths = [half, model.context, position.length if isinstance(position, spec.Learned) else None]
    source = min(length for length in lengths if length is not None)
    return Limits(context=min(memory.longest, half), vocab=model.vocab, source=source)
