"""From texts to what a model's head computes for them: tokens, batches of like lengths, logits in float32."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Encoded, Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.modes import evaluating
from qkv.nn.stack import Transformer
from qkv.tasks.batches import by_length

H = TypeVar("H", bound=spec.Head)
Texts = Sequence[tuple[str, ...]]  # each one text, or two that belong together

_BUDGET = 4096  # tokens a batch


def name(i: int, texts: Sequence[object]) -> str:
    """What an error calls text i of several."""
    return "the text" if len(texts) == 1 else f"texts[{i}]"


def pieces_of(tokenizer: Tokenizer, texts: Texts) -> list[tuple[Pieces, ...]]:
    """The tokens of each text. InputError: there are none."""
    flat = iter(tokenizer.pieces([text for pair in texts for text in pair]))
    found = [tuple(next(flat) for _ in pair) for pair in texts]
    for i, pair in enumerate(found):
        for text, pieces in zip(texts[i], pair, strict=True):
            if not pieces:
                raise InputError(f"{name(i, texts)}: {text!r:.60} has no token: there is nothing to read")
    return found


def single(texts: Texts, task: str) -> Texts:
    """The texts. InputError: a second one, for a task that takes one."""
    if any(len(pair) != 1 for pair in texts):
        raise InputError(f"{task} takes one text, without a second")
    return texts


def outputs(
    model: Transformer, inputs: Sequence[Encoded], *, budget: int = _BUDGET, head: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """What the head computes for each input, in float32: its number and the tensor, in no order of numbers.

    `budget`: at most so many tokens in a batch of several. `head`: which one, where the model has several. InputError:
    segments that the model doesn't know, numbers that are not finite."""
    kinds = model.spec.stacks[0].embed.segments
    if kinds and (most := max((max(one.segments) for one in inputs), default=0)) >= kinds:
        raise InputError(f"the tokenizer marks tokens as of segment {most}, and this model knows {kinds}")
    for rows in by_length([len(one) for one in inputs], budget):
        segments = [inputs[row].segments for row in rows] if kinds else None
        with torch.inference_mode(), evaluating(model):
            out = model([inputs[row].ids for row in rows], segments=segments)
        for row, value in zip(rows, out if head is None else out[head], strict=True):
            if not value.isfinite().all():
                raise InputError(
                    "the head gives numbers that are not finite: the weights hold NaN or infinity (`qkv verify` "
                    "tells), or they overflow in this dtype"
                )
            yield row, value.float()


def check_labels(labels: tuple[str, ...], logits: Tensor) -> None:
    """ConfigError: the head computes another number of scores than it has labels."""
    if logits.shape[-1] != len(labels):
        raise ConfigError(f"the head has {len(labels)} labels and computes {logits.shape[-1]} scores")


def head_of(model: Transformer, kind: type[H]) -> H:
    """The model's head. InputError: it isn't of that kind."""
    if not isinstance(model.spec.head, kind):
        raise InputError(f"this needs a {kind.__name__} head; the model's is {type(model.spec.head).__name__}")
    return model.spec.head


def check_count(what: str, value: int) -> None:
    """InputError: it isn't a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{what} must be a whole number from 1, got {value!r}")
