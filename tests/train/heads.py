"""Small encoders with a head, and what the tests of their objectives share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import qkv
from qkv import spec
from qkv.inputs.text import Tokenizer
from qkv.train.objective import Feed, Objective, Sample
from tests.tasks.fakes import bert, wordpiece

DRAW = np.random.default_rng(0)


def encoder(head: spec.Head, tokenizer: Tokenizer | None = None, **changes: Any) -> qkv.Model:
    """A BERT of two layers with this head, and BERT's kind of tokenizer."""
    tokenizer = tokenizer or wordpiece()
    model = qkv.Model(bert(head, tokenizer.vocab_size, **changes)).eval()
    model.tokenizer = tokenizer
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def collated(objective: Objective, samples: Sequence[Sample]) -> Feed:
    """As one batch; nothing here is random."""
    return objective.collate(samples, DRAW)


def loss_of(objective: Objective, model: qkv.Model, *records: dict[str, Any]) -> torch.Tensor:
    """The summed loss of all records' samples in one batch."""
    return objective.loss(model, collated(objective, [s for record in records for s in objective.encode(record)]))


def loaded(theirs: Any, folder: Any) -> qkv.Model:
    """A model of transformers, in qkv."""
    theirs.save_pretrained(folder)
    return qkv.load(folder).eval()
