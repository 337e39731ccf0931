"""Framed texts ([CLS] a [SEP] b [SEP]) as samples on disk, and samples as what a model reads."""

from collections.abc import Sequence, Sized

import numpy as np
import torch
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Encoded, Pieces
from qkv.inputs.text import Tokenizer
from qkv.train.objective import Feed, Record, Sample


def text_of(record: Record, field: str) -> str:
    """A record's text. InputError: it is none, or blank."""
    text = record.get(field)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{field} must be a text, got {text!r:.60}")
    return text


def pieces_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Pieces]:
    """Their tokens, with where they come from. InputError: a text has none."""
    found = tokenizer.pieces(texts)
    _check_some(texts, found)
    return found


def ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Their tokens' ids, in two thirds of the time, where no more is wanted. InputError: a text has none."""
    found = tokenizer.encode_batch(texts, special=False)
    _check_some(texts, found)
    return found


def _check_some(texts: Sequence[str], found: Sequence[Sized]) -> None:
    for text, tokens in zip(texts, found, strict=True):
        if not len(tokens):
            raise InputError(f"{text!r:.60} has no token: there is nothing to read")


def sample_of(encoded: Encoded, model: spec.Model) -> Sample:
    """ "ids", and "segments" where the model knows such."""
    sample = {"ids": np.asarray(encoded.ids, np.int32)}
    if model.stacks[0].embed.segments:
        sample["segments"] = np.asarray(encoded.segments, np.int32)
    return sample


def feed_of(samples: Sequence[Sample], labels: Tensor, targets: int) -> Feed:
    """Samples as one batch, with these labels."""
    segments = column(samples, "segments") if "segments" in samples[0] else None
    return Feed(column(samples, "ids"), labels, targets, sum(len(one["ids"]) for one in samples), segments=segments)


def column(samples: Sequence[Sample], name: str) -> list[Tensor]:
    """One column of each, int64."""
    return [torch.from_numpy(np.asarray(sample[name], np.int64)) for sample in samples]


def head_of(model: spec.Model, kind: type[spec.Head], objective: str) -> None:
    """ConfigError: the model's head isn't what the objective trains."""
    if not isinstance(model.head, kind):
        name = kind.__name__.lower()
        raise ConfigError(
            f"the objective {objective!r} trains a {kind.__name__} head, and the model's is "
            f"{type(model.head).__name__}: say model.new_head = {name!r}"
        )
