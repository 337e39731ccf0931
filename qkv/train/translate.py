"""Sequence to sequence, with teacher forcing (arXiv 1706.03762): the decoder reads the right tokens, one place late."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.train import loss, recipe
from qkv.train.causal import closing, rows
from qkv.train.framed import ids_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective


def start_of(model: spec.Model, kind: str) -> int:
    """The token that the decoder begins with. ConfigError: the model isn't an encoder–decoder that says it."""
    if model.encoder is None or model.decoder is None or not isinstance(model.head, spec.LMHead):
        raise ConfigError(f"the objective {kind!r} trains an encoder–decoder with an LMHead")
    if model.start is None:
        raise ConfigError(
            f"the objective {kind!r}: the model's spec names no start token; say decoder_start_token_id in its config"
        )
    return model.start


def check_end(tokenizer: Tokenizer) -> None:
    """ConfigError: nothing could end what is generated."""
    if not tokenizer.eos:
        raise ConfigError("the tokenizer has no eos token, so a model could never learn to end: name one (eos)")


def forced(sources: Sequence[NDArray[np.int32]], targets: Sequence[NDArray[np.int32]], start: int) -> Feed:
    """Sources for the encoder; targets behind `start` and without their last token for the decoder; all of the
    targets for labels."""
    read = [np.concatenate(([start], target[:-1])) for target in targets]
    labels = torch.from_numpy(np.concatenate(targets).astype(np.int64))
    tokens = sum(map(len, sources)) + len(labels)
    return Feed(rows(sources), labels, len(labels), tokens, target=rows(read))


@objective(recipe.Translate)
class Translate(Objective):
    """`source` and `target` as the tokenizer frames them, and eos at the target's end if the frame has none. Truncated,
    both keep what the frame puts around them."""

    fields = ("source", "target")

    def __init__(self, settings: recipe.Translate, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        self.start = start_of(model, settings.kind)
        check_end(tokenizer)
        self.frame, self.closing = tokenizer.frame(), closing(tokenizer)
        self.lengths = Lengths(self, settings.on_long, most(model, length), ways=("truncate", "drop"))

    def encode(self, record: Record) -> list[Sample]:
        """InputError: one of the two is missing or blank, or too long."""
        texts = [self.settings.prefix + text_of(record, "source"), text_of(record, "target")]
        source, target = ids_of(self.tokenizer, texts)
        around = self.frame.added, self.frame.added + len(self.closing)
        over, what = max((len(source) + around[0], "source"), (len(target) + around[1], "target"))
        return [
            {
                "ids": np.array(self.frame.ids(source[: part.stop - around[0]]), np.int32),
                "target": np.array([*self.frame.ids(target[: part.stop - around[1]]), *self.closing], np.int32),
            }
            for part in self.lengths.ranges(over, what=what)
        ]

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        return forced([one["ids"] for one in samples], [one["target"] for one in samples], self.start)

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        return loss.of_feed(model, feed, self.settings.smoothing)

    def size(self, sample: Sample) -> int:
        """Source and target together."""
        return len(sample["ids"]) + len(sample["target"])
