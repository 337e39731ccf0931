"""Labels for a text, or for two together."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Encoded, Frame, Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.tasks.forward import Texts, check_labels, head_of, name, outputs, pieces_of
from qkv.tasks.result import Classification
from qkv.tasks.windows import Limit, limit, truncate, windows

OnLong = Literal["error", "truncate", "window"]
ON_LONG = ("error", "truncate", "window")


def classify(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Texts,
    *,
    on_long: OnLong = "error",
    window: int | None = None,
    stride: int | None = None,
) -> list[Classification]:
    """The labels of each text by a `Classify` head.

    `on_long`, for what is longer than the model can read (or than `window` tokens): "error"; "truncate": read the
    beginning; "window": read all of it in windows that share `stride` tokens, over the longer one of two texts, and
    take the mean of their logits. The result says which was done. InputError: another head, a text without tokens, one
    that is too long, a stride that isn't less than a window."""
    head = head_of(model, spec.Classify)
    if on_long not in ON_LONG:
        raise InputError(f"on_long is {on_long!r}, none of {', '.join(ON_LONG)}")
    most = limit(model.spec, window, stride)
    inputs: list[Encoded] = []
    owners: list[int] = []
    unread = []
    for i, pieces in enumerate(pieces_of(tokenizer, texts)):
        frame = tokenizer.frame(len(pieces))
        own = _inputs(frame, pieces, most, on_long, name(i, texts))
        unread.append(0 if on_long == "window" else frame.added + sum(map(len, pieces)) - len(own[0]))
        inputs += own
        owners += [i] * len(own)
    logits = defaultdict[int, list[Tensor]](list)
    for row, out in outputs(model, inputs):
        check_labels(head.labels, out)
        logits[owners[row]].append(out)
    return [_result(head, logits[i], unread[i]) for i in range(len(texts))]


def _inputs(frame: Frame, pieces: Sequence[Pieces], most: Limit, on_long: OnLong, what: str) -> list[Encoded]:
    tokens = frame.added + sum(map(len, pieces))
    if on_long == "error" and most.size is not None and tokens > most.size:
        raise InputError(
            f"{what} has {tokens} tokens; the most is {most.size}: {most.why}. on_long='truncate' reads the beginning, "
            "on_long='window' all of it in parts"
        )
    if on_long == "truncate":
        return [truncate(frame, pieces, most)]
    longer = max(range(len(pieces)), key=lambda i: len(pieces[i]))
    return [window.encoded for window in windows(frame, pieces, longer, most, what)]


def _result(head: spec.Classify, logits: list[Tensor], unread: int) -> Classification:
    mean = torch.stack(logits).mean(0)
    if head.problem == "single":
        mean = mean.softmax(-1)
    elif head.problem == "multi":
        mean = mean.sigmoid()
    scores = dict(sorted(zip(head.labels, mean.tolist(), strict=True), key=lambda pair: -pair[1]))
    label, score = next(iter(scores.items()))
    return Classification(label, score, scores, head.problem, len(logits), unread)
