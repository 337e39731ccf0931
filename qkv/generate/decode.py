"""The loop: prompts in, one small event a token out.

Every sequence has tokens that wait to be read: its prompt, then its own last choice. A step reads some of each, as one
ragged batch; a sequence with nothing left to read gets its next token. So long prompts are read in chunks while short
ones already answer, and whoever is finished leaves the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter

import torch
from torch import Tensor, nn

from qkv.errors import InputError
from qkv.generate.limits import check_ids, room
from qkv.generate.result import FinishReason
from qkv.generate.sample import Choice, Sampler
from qkv.generate.settings import Settings
from qkv.generate.stop import Decoder, Text
from qkv.generate.timing import Timing, Traffic, peak_memory
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache
from qkv.nn.stack import Transformer

RESERVED = 4096  # tokens of cache a sequence taken at once; a larger one grows as it fills


@dataclass(frozen=True, slots=True)
class End:
    """What is known of an answer once it is finished."""

    finish_reason: FinishReason
    timing: Timing
    seed: int | None


@dataclass(slots=True)
class Step:
    """One token of one prompt (`index`), and the text that can be shown now that it is there. `end` on the last."""

    index: int
    choice: Choice
    text: str
    end: End | None


def decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Settings],
    *,
    decoder: Callable[[Sequence[int]], Decoder] | None = None,
    cache: Cache | None = None,
) -> Iterator[Step]:
    """Continue prompts (ids), each by its own settings; a batch reads the smallest prefill_chunk of them at a time.

    `decoder` makes, for a prompt, what turns its answer's tokens into text; None: no text. `cache`: one that already
    holds the beginning of the prompt; afterwards it holds all but the last token, if there was a single prompt. All
    arguments are checked before the first step; the iterator can be closed at any time, and such a cache is then to be
    thrown away. InputError: ids outside the vocabulary, a prompt beyond the context, a cache of other sequences."""
    held = cache.lengths if cache is not None and cache.lengths else [0] * len(prompts)
    if len(held) != len(prompts):
        raise InputError(f"this cache holds {len(held)} sequences, there are {len(prompts)} prompts")
    rows = []
    for i, (prompt, wish) in enumerate(zip(prompts, settings, strict=True)):
        check_ids(i, prompt, wish, model.spec.vocab)
        if held[i] >= len(prompt):
            raise InputError(f"the cache holds {held[i]} tokens, so prompt {i} of {len(prompt)} adds nothing")
        if wish.stop and decoder is None:
            raise InputError("stop texts need a tokenizer; without one give stop_tokens")
        limit = room(model.spec, i, len(prompt), wish, cache.limit if cache is not None else None)
        text = Text(decoder(prompt) if decoder is not None else None, wish.stop)
        rows.append(_Row(i, list(prompt), held[i], limit, wish, text, Sampler(wish, prompt)))
    if cache is None:
        length = max(len(row.ids) + row.limit for row in rows)
        cache = model.new_cache(length if length <= RESERVED else None)
    return _run(model, rows, cache, min(wish.prefill_chunk for wish in settings))


@dataclass(frozen=True, slots=True)
class _Moment:
    """Seconds spent and bytes read since the start of the batch."""

    prefilled: float
    seconds: float
    read: int


@dataclass
class _Row:
    """One sequence in the batch: `ids` of prompt and answer, of which `read` are in the cache (`held` from before)."""

    index: int
    ids: list[int]
    held: int
    limit: int
    settings: Settings
    text: Text
    sampler: Sampler
    read: int = field(init=False)
    first: _Moment | None = None

    def __post_init__(self) -> None:
        self.read = self.held

    @property
    def waiting(self) -> int:
        return len(self.ids) - self.read

    def take(self, count: int) -> list[int]:
        """The next ids to read."""
        self.read += count
        return self.ids[self.read - count : self.read]

    def go_on(self, logits: Tensor) -> tuple[Choice, str, FinishReason | None]:
        """Choose the next token by logits [V]: it, the text that it releases, and why the answer ends, if it does."""
        choice = self.sampler.choose(logits)
        self.ids.append(choice.token)
        if choice.token in self.settings.stop_tokens and not self.settings.ignore_eos:
            return choice, self.text.finish(), "stop"
        text = self.text.push(choice.token)
        if not self.text.stopped and self.sampler.made == self.limit:
            text += self.text.finish()
            return choice, text, "stop" if self.text.stopped else "length"
        return choice, text, "stop" if self.text.stopped else None


def _run(model: Transformer, rows: list[_Row], cache: Cache, chunk: int) -> Iterator[Step]:
    traffic, spent, read = Traffic(model), 0.0, 0
    while rows:
        start = perf_counter()
        counts = share([row.waiting for row in rows], chunk)
        ready = [i for i, row in enumerate(rows) if row.waiting == counts[i]]
        logits = _read(model, [row.take(n) for row, n in zip(rows, counts, strict=True)], cache, ready)
        read += traffic.step(cache.lengths)
        prefilled = spent + perf_counter() - start
        steps = []
        for place, i in enumerate(ready):
            row = rows[i]
            choice, text, reason = row.go_on(logits[place])
            end = None
            if row.first is None or reason is not None:
                now = _Moment(prefilled, spent + perf_counter() - start, read)
                row.first = row.first or now
                end = _end(model, row, reason, now) if reason is not None else None
            steps.append(Step(row.index, choice, text, end))
        rows = _leave(rows, {step.index for step in steps if step.end is not None}, cache)
        spent += perf_counter() - start
        yield from steps


def _leave(rows: list[_Row], finished: set[int], cache: Cache) -> list[_Row]:
    """The rows that go on, and only they in the cache; once all are finished it stays as it is."""
    if not finished:
        return rows
    going = [i for i, row in enumerate(rows) if row.index not in finished]
    if going:
        cache.select(going)
    return [rows[i] for i in going]


def _end(model: Transformer, row: _Row, reason: FinishReason, now: _Moment) -> End:
    assert row.first is not None
    timing = Timing(
        prompt_tokens=len(row.ids) - row.sampler.made - row.held,
        prefill_seconds=row.first.prefilled,
        first_token_seconds=row.first.seconds,
        decode_steps=row.sampler.made - 1,
        decode_seconds=now.seconds - row.first.seconds,
        bytes_read=now.read - row.first.read,
        peak_memory=peak_memory(model.device),
    )
    return End(reason, timing, row.sampler.seed)


def share(waiting: Sequence[int], chunk: int) -> list[int]:
    """How many of each sequence's waiting tokens the next step reads: as evenly as can be, `chunk` in all (but at least
    one each, so more sequences than that read one each)."""
    if sum(waiting) <= chunk:
        return list(waiting)
    counts, left = [0] * len(waiting), chunk
    order = sorted(range(len(waiting)), key=waiting.__getitem__)
    for done, i in enumerate(order):
        counts[i] = min(waiting[i], max(1, left // (len(order) - done)))
        left -= counts[i]
    return counts


@torch.no_grad()
def _read(model: Transformer, chunks: list[list[int]], cache: Cache, ready: list[int]) -> Tensor:
    """Feed each sequence its chunk → logits [len(ready), V] after the last token of those that are ready.

    Not inference_mode: what is in the cache can be used outside."""
    lengths, device = [len(chunk) for chunk in chunks], model.device
    batch = Batch(lengths, cache.starts(lengths), device)
    stream = torch.tensor([i for chunk in chunks for i in chunk], device=device)
    with _evaluating(model) if model.training else nullcontext():
        states = model.states(stream, batch, cache)
        if len(ready) < len(states):
            ends = list(accumulate(lengths))
            states = states[torch.tensor([ends[i] - 1 for i in ready], dtype=torch.long, device=device)]
        return model.logits(states)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside, though the model is in training mode; afterwards each part is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
