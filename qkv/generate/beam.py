"""Beam search: the texts that are likeliest as a whole, as far as a search of a given width finds them.

    each step: of all continuations of the open texts take the likeliest (1 + number of stop tokens) · beams;
               of the first `beams` of them those that end are found texts, the best `beams` others stay open

Which of them count, their scores and when a search ends are transformers' (`_beam_search`). n  open texts of a search,
its rows in the batch    V  vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qkv.generate.processors import processors
from qkv.generate.request import MakeDecoder, Request, requests
from qkv.generate.result import Beam, FinishReason, Generation
from qkv.generate.sample import Choice, log_probabilities, nothing_to_choose
from qkv.generate.settings import Settings
from qkv.generate.step import Reader, new_cache, share
from qkv.generate.stop import Text
from qkv.generate.timing import Moment, Watch
from qkv.nn.cache import Cache
from qkv.nn.stack import Transformer


def beam_search(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Settings],
    *,
    decoder: MakeDecoder | None = None,
) -> list[Generation]:
    """Each prompt (ids) in a search of its own, all in one batch that a finished one leaves; `decoder` as in `decode`.

    The Generation is the best text that was found and has the n_best of them in `beams`: fewer, if that many don't
    exist. InputError: a model that doesn't generate, ids outside the vocabulary, a prompt beyond the context."""
    asked = requests(model, prompts, settings, decoder)
    searches = [_Search(request) for request in asked]
    chunk = min(wish.prefill_chunk for wish in settings)
    done = dict(_run(model, searches, chunk))
    return [done[i] for i in range(len(prompts))]


@dataclass(frozen=True, slots=True)
class _Open:
    """A text that may go on. `row`: the row of the batch that its cache is in; `logprob`: what the search sums."""

    row: int
    ids: list[int]
    choices: list[Choice]
    logprob: float


@dataclass(frozen=True, slots=True)
class _Found:
    """A text that has ended."""

    choices: list[Choice]
    logprob: float
    score: float
    reason: FinishReason


class _Search:
    """One prompt's search. `waiting`: for each of its rows the ids that the model has yet to read."""

    def __init__(self, request: Request) -> None:
        self.request, self.settings = request, request.settings
        self.processors = processors(request.settings, len(request.prompt), request.limit)
        self.open = [_Open(0, list(request.prompt), [], 0.0)]
        self.found: list[_Found] = []
        self.made = 0
        self.over = False
        self.waiting = [list(request.prompt)]
        self.first: Moment | None = None

    def take(self, counts: Sequence[int]) -> list[list[int]]:
        """The next ids to read of each row."""
        taken = [row[:count] for row, count in zip(self.waiting, counts, strict=True)]
        self.waiting = [row[count:] for row, count in zip(self.waiting, counts, strict=True)]
        return taken

    @property
    def ready(self) -> bool:
        return not any(self.waiting)

    def go_on(self, logits: Tensor) -> None:
        """logits [n, V] after the open texts → their continuations."""
        found, going, self.made = len(self.found), list[_Open](), self.made + 1
        values, places = self._best(self._scores(logits))
        for rank, (value, place) in enumerate(zip(values, places, strict=True)):
            if value == -torch.inf or len(going) == self.settings.beams:
                break
            row, token = divmod(place, logits.shape[-1])
            reason = self._reason(row, token)
            if reason and rank >= self.settings.beams:
                continue
            choice = Choice(token, *log_probabilities(logits[row], token, self.settings.logprobs))
            choices = [*self.open[row].choices, choice]
            if reason:
                score = value / self.made**self.settings.length_penalty
                self.found.append(_Found(choices, value, score, reason))
            else:
                going.append(_Open(row, [*self.open[row].ids, token], choices, value))
        if not going and not self.found:
            raise nothing_to_choose(values[0], logits, self.made)
        if len(self.found) > found:
            self.found = sorted(self.found, key=lambda text: -text.score)[: self.settings.beams]
        self.open, self.waiting = going, [[text.ids[-1]] for text in going]
        self.over = not going or self._is_over(going[0].logprob)

    def _scores(self, logits: Tensor) -> Tensor:
        """[n, V]: the open texts' sums with each continuation's log-probability."""
        scores = logits.float().log_softmax(-1)
        if self.processors:
            scores = torch.stack([self._processed(row, text.ids) for row, text in zip(scores, self.open, strict=True)])
        return scores + torch.tensor([text.logprob for text in self.open], device=scores.device)[:, None]

    def _processed(self, scores: Tensor, ids: list[int]) -> Tensor:
        for process in self.processors:
            scores = process(scores, ids)
        return scores.log_softmax(0) if self.settings.renormalize else scores

    def _best(self, scores: Tensor) -> tuple[list[float], list[int]]:
        """The likeliest continuations, best first: enough that `beams` don't end. Their places in [n · V]."""
        count = max(2, 1 + len(self.settings.ends)) * self.settings.beams
        values, places = scores.flatten().topk(min(count, scores.numel()))
        if not values[0] < torch.inf:  # NaN is the largest
            raise nothing_to_choose(float(values[0]), scores, self.made)
        return values.tolist(), places.tolist()

    def _reason(self, row: int, token: int) -> FinishReason | None:
        """Why this token ends the text of that row, if it does."""
        full = self.made == self.request.limit
        if token in self.settings.ends:
            return "length" if full and self.settings.forced_last else "stop"
        if self.settings.stop and self._text([*(c.token for c in self.open[row].choices), token])[1].stopped:
            return "stop"
        return "length" if full else None

    def _text(self, tokens: Sequence[int]) -> tuple[str, Text]:
        """An answer's text so far, and what may go on from there."""
        text = self.request.text()
        return "".join([text.push(token) for token in tokens if token not in self.settings.ends]), text

    def _is_over(self, best: float) -> bool:
        """Is nothing to be gained of open texts of which the likeliest has this log-probability?"""
        wish = self.settings
        if len(self.found) < wish.beams:
            return False
        if wish.early_stopping is True:
            return True
        longest = wish.early_stopping == "never" and wish.length_penalty > 0
        length = self.request.limit if longest else self.made
        return bool(best / length**wish.length_penalty <= self.found[-1].score)

    def generation(self, watch: Watch) -> Generation:
        """What has come of it."""
        now = watch.now()
        prompt = self.request.source or self.request.prompt
        beams = [self._beam(text) for text in self.found[: self.settings.n_best]]
        return Generation(
            text=beams[0].text,
            tokens=beams[0].tokens,
            prompt_tokens=prompt,
            finish_reason=beams[0].finish_reason,
            logprobs=beams[0].logprobs,
            top_logprobs=beams[0].top_logprobs,
            seed=None,
            timing=watch.timing(self.first or now, now, len(prompt), self.made - 1),
            score=beams[0].score,
            beams=beams,
        )

    def _beam(self, found: _Found) -> Beam:
        tokens = [choice.token for choice in found.choices]
        shown, text = self._text(tokens)
        return Beam(
            text=shown + text.finish(),
            tokens=tokens,
            score=found.score,
            logprob=found.logprob,
            finish_reason=found.reason,
            logprobs=[c.logprob for c in found.choices if c.logprob is not None] or None,
            top_logprobs=[c.top for c in found.choices if c.top is not None] or None,
        )


def _run(model: Transformer, searches: list[_Search], chunk: int) -> Iterator[tuple[int, Generation]]:
    """The searches' results as they end, by their prompt's index."""
    read = Reader(model)
    watch = Watch(model)
    watch.start()
    # It grows as it fills, because each reordering copies all of it.
    cache = new_cache(model, [search.request.source for search in searches], None, chunk)
    while searches:
        rows = [search for search in searches for _ in search.waiting]
        counts = iter(share([len(ids) for search in searches for ids in search.waiting], chunk))
        ids = [taken for search in searches for taken in search.take([next(counts) for _ in search.waiting])]
        prompts = [0 if search.made else len(row) for search, row in zip(rows, ids, strict=True)]
        logits = read(ids, cache, [int(search.ready) for search in rows], prompts)
        watch.how = read.how
        watch.read(cache, [len(search.request.source) for search in rows])
        kept, at = list[int](), 0
        for search in searches:
            n = len(search.open)
            if search.ready:
                search.go_on(logits[:n])
                search.first, logits = search.first or watch.now(), logits[n:]
            if search.over:
                yield search.request.index, search.generation(watch)
            else:
                kept += [at + text.row for text in search.open]
            at += n
        searches = [search for search in searches if not search.over]
        _keep(cache, kept)


def _keep(cache: Cache, rows: list[int]) -> None:
    """These rows of the cache, if any, in this order."""
    if rows and rows != list(range(len(cache.lengths))):
        cache.select(rows)
