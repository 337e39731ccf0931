"""The attention of a pass as the page wants it: every head's weights in whole numbers, and what each head does."""

import math
from typing import Any

import torch
from torch import Tensor

from qkv import spec
from qkv.look.record import record
from qkv.model import Model

MOST_TOKENS = 512
MOST_BYTES = 64 * 2**20  # of a pass's weights in float32
SCALE = 10_000  # weights are whole numbers of 1 / SCALE
SMALL = 24  # rows and columns of a small map, at most

Maps = dict[str, list[Tensor]]  # for each part: for each layer int16 [heads, queries, keys] in 1 / SCALE


def most_tokens(model: spec.Model) -> int:
    """Tokens that one look may read: MOST_TOKENS, the model's context, or what MOST_BYTES of weights are."""
    heads = sum(mixer.heads for mixers in parts(model).values() for mixer in mixers)
    return min(MOST_TOKENS, model.context or MOST_TOKENS, int((MOST_BYTES / (4 * max(heads, 1))) ** 0.5))


def parts(model: spec.Model) -> dict[str, list[spec.Attention]]:
    """Every layer's attention, by part. Layers that have none are not counted, as the recorder does."""
    found: dict[str, list[spec.Attention]] = {}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is not None:
            found[name] = [block.mixer for block in stack if isinstance(block.mixer, spec.Attention)]
    found["cross"] = [block.cross for block in model.last if block.cross is not None]
    return {name: mixers for name, mixers in found.items() if mixers}


def recorded(model: Model, ids: list[int], target: list[int]) -> Maps:
    """One pass over ids (and, of an encoder–decoder, a target), and all its weights."""
    with torch.no_grad(), record(model) as tape:
        both = model.encoder is not None and model.decoder is not None
        memory = model.encode([ids]) if both else None
        model.states(*model.batch([target if both else ids]), memory=memory)
    own = "decoder" if model.decoder is not None else "encoder"
    found: dict[str, Any] = {own: tape.attention}
    if both:
        found = {"encoder": tape.encoder, **found, "cross": tape.cross}
    return {part: [_rounded(layer) for layer in layers] for part, layers in found.items()}


def _rounded(weights: Tensor) -> Tensor:
    return (weights * SCALE).round_().to(torch.int16)


def size_of(found: Maps) -> int:
    """Bytes."""
    return sum(layer.nbytes for layers in found.values() for layer in layers)


def one_head(head: Tensor, mixer: spec.Attention, dim: int) -> dict[str, Any]:
    """A head [queries, keys], one row a query without the zeros at its end, and how its scores are made."""
    width = mixer.head_width(dim)
    return {
        "unit": 1 / SCALE,
        "weights": [_without_end(row) for row in head.tolist()],
        "width": width,
        "scale": width**-0.5 if mixer.scale is None else mixer.scale,
        "heads": mixer.heads,
        "kv_heads": mixer.kv_heads,
        "mask": type(mixer.mask).__name__,
    }


def _without_end(row: list[int]) -> list[int]:
    end = len(row)
    while end and not row[end - 1]:
        end -= 1
    return row[:end]


def summary(layer: Tensor, ids: list[int] | None) -> list[dict[str, Any]]:
    """Each head of [heads, queries, keys] in 1 / SCALE at a glance.

    map: the largest weights of a coarser grid of rows × columns, in 1/255, row by row. first, self, previous, next:
    the mean weight on that token; entropy: of a row, in bits, the mean. The first query is left out where there are
    others: it may have nothing but itself to look at. induction (of `ids`, where a token comes again): the mean weight
    on what came after the same token before (arXiv 2209.11895)."""
    p = layer.float() / SCALE
    rows, columns = (min(size, SMALL) for size in p.shape[1:])
    small = (torch.nn.functional.adaptive_max_pool2d(p, (rows, columns)) * 255).round().int().flatten(1)
    later = p[:, 1:] if p.shape[1] > 1 else p
    said = {"first": later[:, :, 0], "entropy": -torch.xlogy(later, later).sum(-1) / math.log(2)}
    if p.shape[1] == p.shape[2] > 1:
        for name, where in (("self", 0), ("previous", -1), ("next", 1)):
            said[name] = p.diagonal(where, 1, 2)[:, max(0, 1 - abs(where)) :]
    again = _again(ids) if ids is not None else None
    if again is not None and again.any():
        said["induction"] = (p * again).sum(-1)[:, again.any(-1)]
    means = {name: values.mean(-1).tolist() for name, values in said.items()}
    return [
        {"map": one, "rows": rows, "columns": columns, **{name: round(each[i], 4) for name, each in means.items()}}
        for i, one in enumerate(small.tolist())
    ]


def _again(ids: list[int]) -> Tensor:
    """[queries, keys]: the key's token comes right after an earlier one that is the query's own."""
    of = torch.tensor(ids)
    earlier = (of[:, None] == of).tril(-1)
    return torch.nn.functional.pad(earlier[:, :-1], (1, 0)).tril(-1)
