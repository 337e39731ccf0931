"""The loop: prompts in, one small event a token out.

Every sequence has tokens that wait to be read: its prompt, then its own last choice. A step reads some of each, as one
ragged batch; a sequence with nothing left to read gets its next token. So long prompts are read in chunks while short
ones already answer, and whoever is finished leaves the batch. Behind its first token a sequence may guess how it goes
on (`speculate`): a step then reads the guess too, and gives the tokens up to the first that was guessed wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.generate.limits import check_ids
from qkv.generate.request import MakeDecoder, Request, requests
from qkv.generate.result import FinishReason
from qkv.generate.sample import Choice
from qkv.generate.settings import Settings
from qkv.generate.speculate import Guesser, Pace, guesser_for
from qkv.generate.step import Reader, new_cache, share
from qkv.generate.timing import Moment, Timing, Watch
from qkv.generate.writer import Writer
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
    guesser: Guesser | None = None,
) -> Iterator[Step]:
    """Continue prompts (ids), each by its own settings; a batch reads the smallest prefill_chunk of them at a time.

    An encoder–decoder's encoder reads the prompts, and the answers begin behind its start token. `decoder` makes, for
    what stands before an answer, what turns its tokens into text; None: no text. `cache`: one that already holds the
    beginning of the prompt; afterwards it holds all but the last token, if there was a single prompt. `guesser`: where
    guesses come from (None: settings' lookup, if any); the tokens are the same with and without. All arguments are
    checked before the first step; the iterator can be closed at any time, and such a cache is then to be thrown away.
    InputError: a model that doesn't generate, ids outside the vocabulary, a prompt beyond the context, a cache of other
    sequences, a guesser that doesn't suit the model or settings."""
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
    rows = [
        _Row(model, request, there, guesser_for(request.settings, guesser))
        for request, there in zip(asked, held, strict=True)
    ]
    return _run(model, rows, cache, min(wish.prefill_chunk for wish in settings))


class _Row:
    """One sequence in the batch: `ids` of prompt and answer, of which `read` are in the cache (`held` from before).
    `guessed` tokens were guessed, and `accepted` of the answer's were right and so took no step of their own."""

    def __init__(self, model: Transformer, request: Request, held: int, guesser: Guesser) -> None:
        self.request, self.held, self.read = request, held, held
        self.ids = list(request.prompt)
        self.writer = Writer(request)
        self.first: Moment | None = None
        self.source = guesser.begin(model, request, self.writer.sampler.seed)
        self.pace = Pace(guesser.most, self.source.cost)
        self.vocab, self.guess = model.spec.vocab, list[int]()
        self.guessed = self.accepted = 0

    @property
    def waiting(self) -> int:
        return len(self.ids) - self.read

    def of_prompt(self, count: int) -> int:
        """How many of the next ids are of the prompt."""
        return max(0, min(count, len(self.request.prompt) - self.read))

    def take(self, count: int) -> list[int]:
        """The next ids to read, and what is guessed to come behind them."""
        self.read += count
        return self.ids[self.read - count : self.read] + self.guess

    def think(self, left: int, cache: Cache) -> None:
        """Guess, if the answer has begun: at most `left` tokens, and only what can be taken back. InputError: one that
        is not in the vocabulary."""
        made = self.writer.sampler.made
        most = min(left, self.request.limit - made - 1, self.pace.next()) if made else 0
        most = min(most, cache.undoable(len(self.ids))) if most > 0 else 0
        self.guess = self.source.propose(self.ids, most)[:most] if most > 0 else []
        check_ids("a guess", self.guess, self.vocab)

    def go_on(self, logits: Tensor) -> list[tuple[Choice, str, FinishReason | None]]:
        """Choose tokens by logits [1 + number guessed, V], up to the first that is not what was guessed: each, the text
        that it releases, and why the answer ends, if it does."""
        made = []
        for scores, told in zip(logits, [*self.guess, None], strict=True):
            choice, text, reason = self.writer.write(scores, self.ids)
            self.ids.append(choice.token)
            made.append((choice, text, reason))
            if reason is not None or choice.token != told:
                break
        if self.guess:
            self.pace.learn(len(self.guess), len(made) - 1)
        self.guessed, self.accepted = self.guessed + len(self.guess), self.accepted + len(made) - 1
        self.read, self.guess = len(self.ids) - 1, []
        return made


def _run(model: Transformer, rows: list[_Row], cache: Cache | None, chunk: int) -> Iterator[Step]:
    read = Reader(model)
    watch = Watch(model)
    watch.start()
    if cache is None:
        length = max(len(row.ids) + row.request.limit for row in rows)
        sources = [row.request.source for row in rows]
        cache = new_cache(model, sources, length if length <= RESERVED else None, chunk)
    cache.reserve(max(row.pace.most for row in rows))
    while rows:
        counts = share([row.waiting for row in rows], chunk)
        ready = [row.waiting == n for row, n in zip(rows, counts, strict=True)]
        _think([row for row, one in zip(rows, ready, strict=True) if one], chunk - sum(counts), cache)
        wanted = [one + len(row.guess) for row, one in zip(rows, ready, strict=True)]
        prompts = [row.of_prompt(n) for row, n in zip(rows, counts, strict=True)]
        logits = read([row.take(n) for row, n in zip(rows, counts, strict=True)], cache, wanted, prompts)
        watch.how = read.how
        watch.read(cache, [len(row.request.source) for row in rows])
        steps = []
        for row, mine in zip(rows, torch.split(logits, wanted), strict=True):
            steps += _steps(watch, row, row.go_on(mine)) if len(mine) else []
        kept = [row.read for row in rows]
        if kept != cache.lengths:
            cache.truncate(kept)
        rows = _leave(rows, {step.index for step in steps if step.end is not None}, cache)
        watch.stop()
        yield from steps
        watch.start()


def _think(rows: list[_Row], left: int, cache: Cache) -> None:
    """The guesses of the rows that get a token, of as many tokens together as the step may still read."""
    for place, row in enumerate(rows):
        row.think(left // (len(rows) - place), cache)
        left -= len(row.guess)


def _steps(watch: Watch, row: _Row, made: list[tuple[Choice, str, FinishReason | None]]) -> list[Step]:
    steps, now, reason = (
        [Step(row.request.index, choice, text, None) for choice, text, _ in made],
        watch.now(),
        made[-1][2],
    )
    row.first = row.first or now
    if reason is not None:
        steps[-1].end = _end(watch, row, now, reason)
    return steps


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
    steps = row.writer.sampler.made - 1 - row.accepted
    timing = watch.timing(row.first or now, now, prompt, steps, row.guessed, row.accepted)
    return End(reason, timing, row.writer.sampler.seed)
