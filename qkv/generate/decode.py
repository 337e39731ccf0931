"""The loop: prompts in, one small event a token out.

Every sequence has tokens that wait to be read: its prompt, then its own last choice. A step reads some of each, as one
ragged batch; a sequence with nothing left to read gets its next token. So long prompts are read in chunks while short
ones already answer, and whoever is finished leaves the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from qkv.errors import InputError
from qkv.generate.request import MakeDecoder, Request, requests
from qkv.generate.result import FinishReason
from qkv.generate.sample import Choice, Sampler
from qkv.generate.settings import Settings
from qkv.generate.step import new_cache, read, share
from qkv.generate.timing import Moment, Timing, Watch
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
    decoder: MakeDecoder | None = None,
    cache: Cache | None = None,
) -> Iterator[Step]:
    """Continue prompts (ids), each by its own settings; a batch reads the smallest prefill_chunk of them at a time.

    An encoder–decoder's encoder reads the prompts, and the answers begin behind its start token. `decoder` makes, for
    what stands before an answer, what turns its tokens into text; None: no text. `cache`: one that already holds the
    beginning of the prompt; afterwards it holds all but the last token, if there was a single prompt. All arguments are
    checked before the first step; the iterator can be closed at any time, and such a cache is then to be thrown away.
    InputError: a model that doesn't generate, ids outside the vocabulary, a prompt beyond the context, a cache of other
    sequences."""
    if cache is not None and model.spec.encoder is not None:
        raise InputError("an encoder–decoder begins each answer anew: it takes no cache")
    asked = requests(model, prompts, settings, decoder, cache.limit if cache is not None else None)
    held = cache.lengths if cache is not None and cache.lengths else [0] * len(prompts)
    if len(held) != len(prompts):
        raise InputError(f"this cache holds {len(held)} sequences, there are {len(prompts)} prompts")
    for there, request in zip(held, asked, strict=True):
        if there >= len(request.prompt):
            raise InputError(
                f"the cache holds {there} tokens, so prompt {request.index} of {len(request.prompt)} adds nothing"
            )
    rows = [_Row(request, there) for request, there in zip(asked, held, strict=True)]
    return _run(model, rows, cache, min(wish.prefill_chunk for wish in settings))


class _Row:
    """One sequence in the batch: `ids` of prompt and answer, of which `read` are in the cache (`held` from before)."""

    def __init__(self, request: Request, held: int) -> None:
        self.request, self.held, self.read = request, held, held
        self.ids = list(request.prompt)
        self.text = request.text()
        self.sampler = Sampler(request.settings, len(request.prompt), request.limit)
        self.first: Moment | None = None

    @property
    def waiting(self) -> int:
        return len(self.ids) - self.read

    def take(self, count: int) -> list[int]:
        """The next ids to read."""
        self.read += count
        return self.ids[self.read - count : self.read]

    def go_on(self, logits: Tensor) -> tuple[Choice, str, FinishReason | None]:
        """Choose the next token by logits [V]: it, the text that it releases, and why the answer ends, if it does."""
        choice = self.sampler.choose(logits, self.ids)
        self.ids.append(choice.token)
        full = self.sampler.made == self.request.limit
        if choice.token in self.request.settings.ends:
            return choice, self.text.finish(), "length" if full and self.request.settings.forced_last else "stop"
        text = self.text.push(choice.token)
        if not self.text.stopped and full:
            text += self.text.finish()
            return choice, text, "stop" if self.text.stopped else "length"
        return choice, text, "stop" if self.text.stopped else None


def _run(model: Transformer, rows: list[_Row], cache: Cache | None, chunk: int) -> Iterator[Step]:
    watch = Watch(model)
    watch.start()
    if cache is None:
        length = max(len(row.ids) + row.request.limit for row in rows)
        sources = [row.request.source for row in rows]
        cache = new_cache(model, sources, length if length <= RESERVED else None, chunk)
    while rows:
        counts = share([row.waiting for row in rows], chunk)
        wanted = [int(row.waiting == n) for row, n in zip(rows, counts, strict=True)]
        logits = read(model, [row.take(n) for row, n in zip(rows, counts, strict=True)], cache, wanted)
        watch.read(cache.lengths, [len(row.request.source) for row in rows])
        steps = []
        for place, row in enumerate(row for row, one in zip(rows, wanted, strict=True) if one):
            choice, text, reason = row.go_on(logits[place])
            end = None
            if row.first is None or reason is not None:
                now = watch.now()
                row.first = row.first or now
                end = _end(watch, row, now, reason) if reason is not None else None
            steps.append(Step(row.request.index, choice, text, end))
        rows = _leave(rows, {step.index for step in steps if step.end is not None}, cache)
        watch.stop()
        yield from steps
        watch.start()


def _leave(rows: list[_Row], finished: set[int], cache: Cache) -> list[_Row]:
    """The rows that go on, and only they in the cache; once all are finished it stays as it is."""
    if not finished:
        return rows
    going = [i for i, row in enumerate(rows) if row.request.index not in finished]
    if going:
        cache.select(going)
    return [rows[i] for i in going]


def _end(watch: Watch, row: _Row, now: Moment, reason: FinishReason) -> End:
    prompt = len(row.request.source) or len(row.request.prompt) - row.held
    return End(reason, watch.timing(row.first or now, now, prompt, row.sampler.made - 1), row.sampler.seed)
