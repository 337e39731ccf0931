"""Causal language models: each token from those before it (Radford et al. 2018)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.nn.head import IGNORED
from qkv.nn.stack import Transformer
from qkv.train import loss, recipe
from qkv.train.framed import ids_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective


def rows(arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    """Sequences as a model takes them, int64: views of one tensor, so that another process sends one."""
    joined = torch.from_numpy(np.concatenate(arrays).astype(np.int64))
    return list(torch.split(joined, [len(array) for array in arrays]))


def closing(tokenizer: Tokenizer) -> list[int]:
    """What ends a text beyond the tokenizer's own frame: its eos, where the frame doesn't put it there already."""
    slots = tokenizer.frame().slots
    last = max(i for i, slot in enumerate(slots) if slot.part is not None)
    ended = any(slot.id in tokenizer.eos for slot in slots[last + 1 :])
    return [] if ended else list(tokenizer.eos[:1])


def check_causal(model: spec.Model, kind: str) -> None:
    """ConfigError: the model isn't one that continues a text, or its tokens see those that they are to guess."""
    if model.decoder is None or model.encoder is not None or not isinstance(model.head, spec.LMHead):
        raise ConfigError(f"the objective {kind!r} trains a decoder alone with an LMHead (model.new_head = 'lm')")
    for block in model.decoder.blocks:
        if isinstance(block.mixer, spec.Attention) and isinstance(block.mixer.mask, spec.Full):
            raise ConfigError(
                f"the objective {kind!r} needs causal masks: a token that sees the next one learns nothing"
            )


def shifted(ids: Sequence[NDArray[np.int32]], starts: Sequence[int]) -> Feed:
    """Each sequence but its last token, and for labels the next tokens from place `starts` of it on. A sequence of one
    token predicts nothing."""
    read, labels = [], []
    for own, start in zip(ids, starts, strict=True):
        wanted = own[1:].astype(np.int64)
        wanted[: max(start - 1, 0)] = IGNORED
        read.append(own[:-1] if len(own) > 1 else own)
        labels.append(wanted if len(own) > 1 else np.array([IGNORED]))
    joined = np.concatenate(labels)
    return Feed(rows(read), torch.from_numpy(joined), int((joined != IGNORED).sum()), len(joined))


@objective(recipe.Causal)
class Causal(Objective):
    """A text as the tokenizer frames it (bos …), and eos at its end, where the tokenizer has one. With an `answer` its
    tokens, which follow the text's as they do in generating, and the eos alone are learned. In windows, or cut in
    packing, the parts of a text follow each other without tokens of their own; only the last has the eos."""

    fields = ("text",)
    optional = ("answer",)
    packs = True

    def __init__(self, settings: recipe.Causal, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        check_causal(model, settings.kind)
        self.frame, self.closing = tokenizer.frame(), closing(tokenizer)
        self.lengths = Lengths(self, settings.on_long, most(model, length))

    def encode(self, record: Record) -> list[Sample]:
        """InputError: no text, one too long, an answer that isn't one or has no room."""
        text = text_of(record, "text")
        if record.get("answer") is not None:
            return self._answered(text, text_of(record, "answer"))
        ids = np.array([*self.frame.ids(ids_of(self.tokenizer, [text])[0]), *self.closing], np.int32)
        if self.packed:
            return [{"ids": ids}]
        return [_sample(ids[part.start : part.stop], 0) for part in self.lengths.ranges(len(ids))]

    def _answered(self, text: str, answer: str) -> list[Sample]:
        if self.packed:
            raise InputError('texts with an answer can\'t be packed: say batch.packing = "none"')
        asked, whole = ids_of(self.tokenizer, [text, text + answer])
        if whole[: len(asked)] != asked:  # a token would reach into the answer, which it can't in generating
            whole = asked + self.tokenizer.pieces([answer], middle=True)[0].ids
        ids = np.array([*self.frame.ids(whole), *self.closing], np.int32)
        start = [slot.part for slot in self.frame.slots].index(0) + len(asked)
        parts = self.lengths.ranges(len(ids))
        if len(parts) > 1:
            raise InputError(
                'a text with an answer can\'t be read in windows: say objective.on_long = "drop" or "truncate"'
            )
        if parts and parts[0].stop <= start:
            raise InputError(f"the text has {start} tokens, so nothing of its answer is within {parts[0].stop}")
        return [_sample(ids[part.start : part.stop], start) for part in parts]

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        return shifted(
            [one["ids"] for one in samples], [int(one["learned"][0]) if "learned" in one else 0 for one in samples]
        )

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        return loss.of_feed(model, feed, self.settings.smoothing)


def _sample(ids: NDArray[np.int32], start: int) -> Sample:
    """learned: [1], the first token that is."""
    return {"ids": ids, "learned": np.array([start], np.int32)}
