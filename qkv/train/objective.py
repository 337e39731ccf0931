"""What every objective says: how a record becomes samples, samples a batch, and a batch a loss.

A record is what a file holds: a mapping of fields. A sample is what is kept of it on disk: columns of whole numbers. A
feed is a batch as the model reads it. Everything random comes from the generator that `collate` is given, so that a
batch is the same in any process and after any restart.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qkv import spec
from qkv.inputs.text import Tokenizer
from qkv.nn.edge import Ids
from qkv.nn.stack import Transformer
from qkv.train import recipe

Record = Mapping[str, Any]
Sample = dict[str, NDArray[np.int32]]  # "ids" is what the encoder, or the only stack, reads; each value has one axis


@dataclass
class Feed:
    """A batch. `ids`, `segments` and `target` in the forms that a model takes; `labels` as the objective's loss does.

    targets: how many predictions the loss sums over; tokens: how many the model reads; samples: their numbers in the
    data, for messages."""

    ids: Ids
    labels: Any
    targets: int
    tokens: int
    samples: Sequence[int] = ()
    segments: Ids | None = None
    target: Ids | None = None


class Objective(ABC):
    """One way to learn. `fields` are the names that it reads of a record, `optional` those that may be missing."""

    fields: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    not_read: ClassVar[tuple[str, ...]] = ()  # those of both whose texts the model never reads: labels, names, scores
    packs: ClassVar[bool] = False  # texts may be joined and cut anywhere

    def __init__(self, settings: Any, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        """`settings`: its table in the recipe; `length`: tokens of a sample at most. ConfigError: a model of another
        kind, or a tokenizer without what is needed."""
        self.settings, self.spec, self.tokenizer, self.length = settings, model, tokenizer, length
        self.packed = False  # texts will be: `encode` leaves them whole (`qkv.train.objectives.make` says so)
        self.cut = 0  # texts that were cut or read in windows
        self.dropped = 0  # and that were left out, as `on_long` says

    @abstractmethod
    def encode(self, record: Record) -> list[Sample]:
        """A record's samples, most often one. InputError: the record isn't what it should be."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        """Samples as one batch, in their order."""

    @abstractmethod
    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        """The sum of the losses of all targets, float32 []."""

    def size(self, sample: Sample) -> int:
        """How many tokens the model reads of a sample."""
        return len(sample["ids"])


O = TypeVar("O", bound=type[Objective])
OBJECTIVES: dict[type[recipe.Objective], type[Objective]] = {}


def objective(settings: type[recipe.Objective]) -> Callable[[O], O]:
    """Register the class of a recipe's objective."""

    def register(cls: O) -> O:
        OBJECTIVES[settings] = cls
        return cls

    return register
