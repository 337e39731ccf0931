"""A label for each word: a word's first token has it, its others none (BERT, arXiv 1810.04805, §5.3)."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.head import IGNORED
from qkv.nn.stack import Transformer
from qkv.tasks.tag import best_context
from qkv.tasks.windows import trim
from qkv.train import recipe
from qkv.train.classify import check_labels, in_order
from qkv.train.framed import column, feed_of, head_of, sample_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective


@objective(recipe.TagWords)
class TagWords(Objective):
    """Words are read as a text with single spaces between them, as `qkv.tasks.tag` will read one; for a tokenizer that
    cuts at spaces that is transformers' `is_split_into_words`. A word without tokens (a zero-width space) has none to
    learn from. In windows each word's label is in the one where it has the most text around it, from which `tag` takes
    it, too."""

    fields = ("words", "tags")
    not_read = ("tags",)

    def __init__(self, settings: recipe.TagWords, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        head_of(model, spec.Tag, settings.kind)
        self.labels = cast(spec.Tag, model.head).labels
        check_labels(self.labels, settings.labels)
        self.lengths = Lengths(self, settings.on_long, most(model, length), stride=None)

    def encode(self, record: Record) -> list[Sample]:
        """InputError: no words, other numbers of words and tags, an unknown tag, too many tokens."""
        words, tags = words_of(record), tags_of(record)
        if len(words) != len(tags):
            raise InputError(f"there are {len(words)} words and {len(tags)} tags: one for each is needed")
        if unknown := set(tags) - set(self.labels):
            raise InputError(f"tag {min(unknown)!r:.60} is none of the head's: {', '.join(self.labels[:20])}")
        pieces, first = self.read(words)
        of = np.full(len(pieces), IGNORED, np.int32)
        for word, place in first.items():
            of[place] = self.labels.index(tags[word])
        windows = self.lengths.framed(self.tokenizer.frame(), [pieces])
        if not windows:  # dropped
            return []
        owner = best_context(windows, [torch.full((len(w.tokens),), i) for i, w in enumerate(windows)]).numpy()
        samples = []
        for i, window in enumerate(windows):
            labels = np.full(len(window.encoded), IGNORED, np.int32)
            here = of[window.tokens.start : window.tokens.stop]
            own = owner[window.tokens.start : window.tokens.stop] == i
            labels[window.encoded.places(0)] = np.where(own, here, IGNORED)
            samples.append({**sample_of(window.encoded, self.spec), "label": labels})
        return samples

    def read(self, words: Sequence[str]) -> tuple[Pieces, dict[int, int]]:
        """The words' tokens, and the place of each word's first one (in order; a word without tokens has none).
        InputError: there is no token at all."""
        text = " ".join(words)
        pieces = self.tokenizer.pieces([text])[0]
        starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
        first: dict[int, int] = {}
        for place, (start, end) in enumerate(pieces.offsets):
            begins = trim(text, start, end)[0]  # a token may have the space before it
            first.setdefault(bisect_right(starts, begins) - 1, place)
        if not first:
            raise InputError(f"the words {text!r:.60} have no token: there is nothing to read")
        return pieces, first

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        labels = torch.cat(column(samples, "label"))
        return feed_of(samples, labels, int((labels != IGNORED).sum()))

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        """Cross-entropy of the words' first tokens, summed."""
        out = torch.cat(model(feed.ids, segments=feed.segments)).float()
        return F.cross_entropy(
            out,
            feed.labels.to(out.device),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.settings.smoothing,
        )


def labels_of(records: Iterable[Record], settings: recipe.TagWords) -> tuple[str, ...]:
    """The labels of a new head: those that the recipe names, or the records' tags, sorted. InputError: there are
    none."""
    if settings.labels is not None:
        return settings.labels
    found: set[str] = set()
    for record in records:
        tags = record.get("tags")
        found.update(tag for tag in (tags if isinstance(tags, list | tuple) else ()) if isinstance(tag, str))
    return in_order(found)


def words_of(record: Record) -> list[str]:
    """A record's words. InputError: it has none, or one is empty."""
    words = _strings(record.get("words"), "words")
    if "" in words:
        raise InputError(f"words has an empty one: {words!r:.60}")
    return words


def tags_of(record: Record) -> list[str]:
    """A record's tags. InputError: it has none."""
    return _strings(record.get("tags"), "tags")


def _strings(value: Any, field: str) -> list[str]:
    if isinstance(value, str):  # of a CSV file, and such
        value = value.split()
    if not isinstance(value, Sequence) or not value or not all(isinstance(one, str) for one in value):
        raise InputError(f"{field} must be a list of texts, got {value!r:.60}")
    return list(value)
