"""Vectors of texts that belong together, nearer to each other than to all others of the batch (arXiv 1705.00652, §4.4;
Sentence-BERT's MultipleNegativesRankingLoss)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qkv import spec
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.train import recipe
from qkv.train.framed import column, head_of, pieces_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective

_TEXTS = ("first", "second", "negative")


@objective(recipe.Contrast)
class Contrast(Objective):
    """A pair is one target: cross-entropy of cos(first, candidate) · scale over all seconds of the batch and all
    negatives, its own second being the right one. What a batch holds decides what it learns, so accumulated small
    batches are not one large one. A `score` (how alike a pair is) is for evaluation alone."""

    fields = ("first", "second")
    optional = ("negative", "score")
    not_read = ("score",)

    def __init__(self, settings: recipe.Contrast, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        head_of(model, spec.Pool, settings.kind)
        self.lengths = Lengths(self, settings.on_long, most(model, length), ways=("truncate", "drop"))

    def encode(self, record: Record) -> list[Sample]:
        """InputError: a text is missing or too long. Where one of them is dropped, the pair is."""
        there = [name for name in _TEXTS if name in self.fields or record.get(name) is not None]
        texts = pieces_of(self.tokenizer, [text_of(record, name) for name in there])
        frame = self.tokenizer.frame()
        found = [self.lengths.framed(frame, [text], what=name) for name, text in zip(there, texts, strict=True)]
        if not all(found):
            return []
        ids = {name: np.asarray(own[0].encoded.ids, np.int32) for name, own in zip(there, found, strict=True)}
        first = {"ids": ids.pop("first")}
        return [{**first, **{name: ids.get(name, np.empty(0, np.int32)) for name in _TEXTS[1:]}}]

    def size(self, sample: Sample) -> int:
        return len(sample["ids"]) + len(sample["second"]) + len(sample["negative"])

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        """ids: all firsts, all seconds, and as many negatives as there are. labels: the seconds' numbers."""
        texts = [ids for name in ("ids", *_TEXTS[1:]) for ids in column(samples, name) if len(ids)]
        return Feed(texts, torch.arange(len(samples)), len(samples), sum(map(len, texts)))

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        """Summed over pairs."""
        vectors = F.normalize(torch.stack(model(feed.ids)).float(), dim=-1)
        first, candidates = vectors[: feed.targets], vectors[feed.targets :]
        scores = first @ candidates.T * self.settings.scale
        labels = feed.labels.to(scores.device)
        return F.cross_entropy(scores, labels, reduction="sum", label_smoothing=self.settings.smoothing)
