"""The edge: ids in the forms that callers have, as the stream that the model reads."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qkv.errors import InputError

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Ids = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]


def as_stream(ids: Ids, vocab: int, device: torch.device) -> tuple[Tensor, list[int]]:
    """Ids at the edge → the stream [T] and each sequence's length. InputError names the sequence and the id."""
    stream, lengths = _joined(ids, "ids", device)
    low, high = (int(x) for x in torch.aminmax(stream))
    if low < 0 or high >= vocab:
        raise InputError(f"token id {low if low < 0 else high} is outside the vocabulary of {vocab}")
    return stream, lengths


def segments_of(segments: Ids, lengths: list[int], kinds: int, device: torch.device) -> Tensor:
    """The kind of each token of the stream [T]. InputError: not of the ids' form, or a model that knows no kinds."""
    if not kinds:
        raise InputError("this model's embedding has no segments: it can't tell kinds of tokens apart")
    stream, own = _joined(segments, "segments", device)
    if own != lengths:
        raise InputError(f"segments must have the lengths of the ids, {lengths}, got {own}")
    return stream


def _joined(ids: Ids, what: str, device: torch.device) -> tuple[Tensor, list[int]]:
    if isinstance(ids, Tensor) and ids.ndim != 2:
        raise InputError(f"{what} must be [batch, length], got the shape {list(ids.shape)}")
    if not isinstance(ids, Iterable):
        raise InputError(f"{what} must be a tensor [batch, length] or a list of sequences, got {type(ids).__name__}")
    rows = [_row(i, row) for i, row in enumerate(ids)]
    if not rows:
        raise InputError("no sequence was given")
    return torch.cat(rows).to(device=device, dtype=torch.long), [row.numel() for row in rows]


def _row(i: int, ids: Sequence[int] | Tensor) -> Tensor:
    try:
        row = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"sequence {i} must be a row of whole numbers, got {ids!r:.80}") from error
    if row.ndim == 1 and row.numel() == 0:
        raise InputError(f"sequence {i} is empty: there is nothing to read")
    if row.ndim != 1 or row.dtype not in WHOLE:
        raise InputError(f"sequence {i} must be a row of whole numbers, got {row.dtype} of shape {list(row.shape)}")
    return row
