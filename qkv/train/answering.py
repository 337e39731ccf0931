"""Answers that stand in a context: their first and last tokens are learned (BERT, arXiv 1810.04805, §4.2 and §4.3)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Offset
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.tasks.windows import Limit, Window, trim, windows
from qkv.train import recipe
from qkv.train.framed import column, feed_of, head_of, pieces_of, sample_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective


class Answer(NamedTuple):
    """Characters start..start + len(text) − 1 of a context."""

    text: str
    start: int


@objective(recipe.AnswerSpan)
class AnswerSpan(Objective):
    """Every window of a context is a sample. Where it holds the first of the answers whole, these tokens are right;
    else, and where there is no answer, the first token ([CLS]) is, as start and as end. (So transformers'
    run_qa.py.) A sample is one target: the mean of both losses."""

    fields = ("question", "context")
    optional = ("answers", "impossible", "id", "title")
    not_read = optional

    def __init__(
        self, settings: recipe.AnswerSpan, model: spec.Model, tokenizer: Tokenizer, length: int | None
    ) -> None:
        super().__init__(settings, model, tokenizer, length)
        head_of(model, spec.Span, settings.kind)
        # Windows are what `stride` says. That a text needs some is no surprise, so "error" has nothing to tell.
        Lengths(self, settings.on_long, None, ways=("window",))
        own = most(model, length)
        self.limit = Limit(own.size, own.why, settings.stride)

    def encode(self, record: Record) -> list[Sample]:
        """InputError: no question or context, an answer that doesn't stand where it is said to, no room."""
        context = text_of(record, "context")
        answers = answers_of(record)
        found = self.windows(text_of(record, "question"), context)
        self.cut += len(found) > 1
        spans = [np.asarray(self._span(window, context, answers), np.int32) for window in found]
        return [{**sample_of(one.encoded, self.spec), "label": span} for one, span in zip(found, spans, strict=True)]

    def windows(self, question: str, context: str) -> list[Window]:
        """What the model reads, one after the other. InputError: a text without tokens, no room beside the question."""
        texts = pieces_of(self.tokenizer, [question, context])
        return windows(self.tokenizer.frame(2), texts, 1, self.limit, "the question")

    def _span(self, window: Window, context: str, answers: Sequence[Answer]) -> tuple[int, int]:
        """First and last token of the answer in a window."""
        ids, cls = window.encoded.ids, self.tokenizer.cls
        none = ids.index(cls) if cls in ids else 0
        if not answers:
            return none, none
        start, end = trim(context, answers[0].start, answers[0].start + len(answers[0].text))
        places = window.encoded.places(1)
        offsets: list[Offset] = [offset for place in places if (offset := window.encoded.offsets[place]) is not None]
        if offsets[0][0] > start or offsets[-1][1] < end:
            return none, none
        first = max(i for i, offset in enumerate(offsets) if offset[0] <= start)
        last = min(i for i, offset in enumerate(offsets) if offset[1] >= end)
        return places[first], places[max(first, last)]

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        return feed_of(samples, torch.stack(column(samples, "label")), len(samples))

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        """Over each sample's own tokens: the mean of the start's and the end's cross-entropy, summed over samples."""
        losses = [
            F.cross_entropy(row.float().T, own.to(row.device), reduction="sum", label_smoothing=self.settings.smoothing)
            for row, own in zip(model(feed.ids, segments=feed.segments), feed.labels, strict=True)
        ]
        return torch.stack(losses).sum() / 2


def answers_of(record: Record) -> list[Answer]:
    """A record's answers; [] where it has none, or says that it is impossible. InputError: something else, or an
    answer that isn't in the context where it says."""
    given = record.get("answers")
    if given is None or record.get("impossible") is True:
        return []
    if not isinstance(given, list | tuple):
        raise InputError(f"answers must be a list of {{text, start}}, got {given!r:.60}")
    return [_answer(one, record.get("context")) for one in given]


def _answer(given: object, context: object) -> Answer:
    text, start = (given.get("text"), given.get("start")) if isinstance(given, Mapping) else (None, None)
    if not isinstance(text, str) or not text.strip() or isinstance(start, bool) or not isinstance(start, int):
        raise InputError(f"an answer must be {{text, start}}, got {given!r:.60}")
    if not isinstance(context, str) or start < 0 or context[start : start + len(text)] != text:
        raise InputError(f"the answer {text!r:.60} doesn't stand at character {start} of the context")
    return Answer(text, start)
