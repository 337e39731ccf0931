"""How likely a decoder finds a text: perplexity and bits per byte over windows, and exactly which tokens count.

A text is read in windows of at most `length` tokens (what the model can read at once, or what is asked for). Each
begins with what the tokenizer puts before a text (BOS, most often, or nothing), and shares `stride` tokens with the one
before (the last one more, to be full). A token counts once: in the first window that holds it, so that from the second
window on it has at least `stride` tokens before it. The first token of all counts only behind a BOS, as else nothing
predicts it; its bytes don't count either, then. What ends a text (EOS) is not predicted.

Bits per byte don't depend on what the tokenizer calls a token; perplexity does. Both depend on the window and stride.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn import functional as F

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.nn.modes import evaluating
from qkv.nn.stack import Transformer
from qkv.tasks.batches import by_length
from qkv.tasks.windows import limit
from qkv.train import metrics

UNLIMITED = 1024  # tokens of a window where neither the model nor anyone says
_BUDGET = 4096  # tokens a batch
_ROWS = 128  # tokens whose logits are there at once


@dataclass(frozen=True)
class Likelihood:
    """nll: nats of all tokens that count; tokens: how many these are, in how many windows of at most `length` tokens
    that share `stride`; size: bytes of the text that they spell."""

    nll: float
    tokens: int
    size: int
    windows: int
    length: int
    stride: int
    behind: bool  # the first token of a text counts too

    @property
    def values(self) -> dict[str, float]:
        """loss (nats a token), perplexity, bits_per_byte."""
        return {
            "loss": self.nll / self.tokens,
            "perplexity": metrics.perplexity(self.nll, self.tokens),
            "bits_per_byte": metrics.bits_per_byte(self.nll, self.size),
        }

    def describe(self) -> str:
        """How it was counted, in a sentence."""
        first = "behind BOS, the first token counts" if self.behind else "the first token of each text is not counted"
        return (
            f"{self.tokens:,} tokens, {self.size:,} bytes, in {self.windows:,} windows of at most {self.length:,} "
            f"tokens that share {self.stride:,}; a token counts once; {first}"
        )


@dataclass(frozen=True)
class _Window:
    """What is read, and how many of its last tokens count."""

    ids: list[int]
    counted: int


def likelihood(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    length: int | None = None,
    stride: int | None = None,
    budget: int = _BUDGET,
) -> Likelihood:
    """Over all texts, each read for itself. `stride` None: half a window. InputError: a model that doesn't continue
    texts, a window that it can't read or without room, no token that counts, a loss that is not finite."""
    if not isinstance(model.spec.head, spec.LMHead) or model.encoder is not None:
        raise InputError("perplexity is of a decoder with a language model's head, which this model isn't")
    most = limit(model.spec, length, stride).size or UNLIMITED
    before = _before(tokenizer)
    room = most - len(before)
    shared = max(room // 2, 0) if stride is None else stride
    if room < 1 or shared >= room:
        raise InputError(f"a window of {most} has room for {room} tokens of text: too few to share {shared} and go on")
    if not before and not shared:
        raise InputError("stride must be at least 1: without a BOS nothing predicts the first token of a window")
    windows, size = [], 0
    for text in texts:
        pieces = tokenizer.pieces([text])[0]
        own = list(_windows(pieces.ids, before, room, room - shared))
        windows += own
        unread = 0 if before or not pieces else pieces.offsets[0][1]
        size += len(text[unread:].encode()) if own else 0
    tokens = sum(window.counted for window in windows)
    if not tokens or not size:
        raise InputError("there is no token to predict: the text is empty, or a single token")
    nll = math.fsum(_losses(model, windows, budget))
    if not math.isfinite(nll):
        raise InputError("the loss is not finite: the weights hold NaN or infinity (`qkv verify` tells), or overflow")
    return Likelihood(nll, tokens, size, len(windows), most, shared, bool(before))


def _before(tokenizer: Tokenizer) -> list[int]:
    """The special tokens before a text."""
    found = []
    for slot in tokenizer.frame().slots:
        if slot.part is not None:
            break
        found.append(slot.id)
    return found


def _windows(ids: Sequence[int], before: list[int], room: int, step: int) -> Iterator[_Window]:
    """The windows of one text: the first holds `room` tokens, each other one `step` new ones at its end."""
    done = 0
    while done < len(ids):
        stop = min(len(ids), done + step if done else room)
        start = max(0, stop - room)
        counted = stop - done - (done == 0 and not before)
        if counted:
            yield _Window([*before, *ids[start:stop]], counted)
        done = stop


def _losses(model: Transformer, windows: Sequence[_Window], budget: int) -> Iterator[float]:
    """The summed loss of each batch."""
    for rows in by_length([len(window.ids) for window in windows], budget):
        yield _loss(model, [windows[row] for row in rows])


def _loss(model: Transformer, windows: Sequence[_Window]) -> float:
    with torch.no_grad(), evaluating(model):
        stream, batch = model.batch([window.ids for window in windows])
        states = model.states(stream, batch)
        ends = accumulate(batch.lengths)
        places = [range(end - window.counted, end) for end, window in zip(ends, windows, strict=True)]
        at = torch.tensor([place for own in places for place in own], device=stream.device)
        total = 0.0
        for start in range(0, len(at), _ROWS):
            part = at[start : start + _ROWS]
            logits = model.logits(states[part - 1]).float()
            total += float(F.cross_entropy(logits, stream[part], reduction="sum"))
        return total
