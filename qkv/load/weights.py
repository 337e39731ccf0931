"""Filling a model from a checkpoint, and the way back, by one weight table. Strict: nothing is left over on either
side, or WeightError with what is missing, unexpected or misshapen, before any weight is read."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import WeightError
from qkv.families.family import Family, Row
from qkv.load.checkpoint import Checkpoint
from qkv.load.transforms import give, take
from qkv.nn.stack import Transformer


def expand(rows: Iterable[Row], model: Transformer) -> list[Row]:
    """The table for this model: a row for each layer, and only rows whose targets it has."""
    have = {name for name, _ in model.named_parameters()}
    out = []
    for row in rows:
        layers = range(model.spec.decoder.layers) if "{i}" in row.theirs else [0]
        for i in layers:
            targets = tuple(t.replace("{i}", str(i)) for t in row.targets)
            if all(t in have for t in targets):
                out.append(Row(row.theirs.replace("{i}", str(i)), targets, row.via))
    covered = Counter(t for row in out for t in row.targets)
    if covered.keys() != have or max(covered.values()) > 1:
        wrong = sorted(have - covered.keys()) + [t for t, n in covered.items() if n > 1]
        raise WeightError(f"the family's weight table doesn't cover each parameter once: {', '.join(wrong[:8])}")
    return out


def fill(
    model: Transformer,
    rows: Iterable[Row],
    checkpoint: Checkpoint,
    family: Family,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> list[str]:
    """Give every parameter of a model (on any device, meta too) its value. Returns notes on what was out of the
    ordinary. `dtype` None: as stored (where several kinds are stored, that of the embedding)."""
    shapes = dict(checkpoint.shapes())
    table, notes = _without_prefix(expand(rows, model), shapes, family)
    tied = family.head if _tied(model.spec) and family.head in shapes else None
    _check_names_and_shapes(model, table, shapes, tied, checkpoint.where, family)
    first = next(r for r in table if "decoder.embed.tokens.weight" in r.targets)
    embedding = checkpoint.read(first.theirs)
    if tied is not None:
        notes.append(_same(embedding, checkpoint.read(tied), tied, checkpoint.where))
    dtype = dtype or embedding.dtype
    attention, head_dim = _attention(model.spec)
    converted: Counter[torch.dtype] = Counter()
    for row in table:
        stored = embedding if row is first else checkpoint.read(row.theirs)
        if not stored.is_floating_point():
            raise WeightError(f"{checkpoint.where}: {row.theirs} holds {stored.dtype}, which are not plain weights")
        converted[stored.dtype] += stored.dtype != dtype
        sizes = [model.get_parameter(t).shape[0] for t in row.targets]
        for target, part in zip(row.targets, take(stored, row.via, sizes, attention, head_dim), strict=True):
            _set(model, target, part.to(device=device, dtype=dtype))
    notes += [f"{n} tensors stored as {_short(d)} are held as {_short(dtype)}" for d, n in converted.items() if n]
    _nothing_left_on_meta(model)
    return notes


def export(model: Transformer, family: Family) -> dict[str, Tensor]:
    """Every parameter under the names of the family's checkpoints (a tied head is stored once, as the embedding)."""
    parameters = dict(model.named_parameters())
    attention, head_dim = _attention(model.spec)
    return {
        row.theirs: give([parameters[t].detach() for t in row.targets], row.via, attention, head_dim)
        for row in expand(family.weights, model)
    }


def _check_names_and_shapes(
    model: Transformer,
    table: Sequence[Row],
    shapes: Mapping[str, tuple[int, ...]],
    tied: str | None,
    where: str,
    family: Family,
) -> None:
    """Raises WeightError unless the checkpoint has the table's tensors as the model needs them, and no other (a head
    that is stored although `tied`, and what the family ignores, apart)."""
    parameters = dict(model.named_parameters())
    attention, head_dim = _attention(model.spec)

    def wanted(row: Row) -> tuple[int, ...]:
        parts = [torch.empty(parameters[t].shape, device="meta") for t in row.targets]
        return tuple(give(parts, row.via, attention, head_dim).shape)

    ignored = re.compile("|".join(re.escape(i).replace(r"\{i\}", r"\d+") for i in family.ignored) or "(?!)")
    extra = sorted(n for n in shapes.keys() - {r.theirs for r in table} - {tied} if not ignored.fullmatch(n))
    missing = sorted(r.theirs for r in table if r.theirs not in shapes)
    misshapen = [(r.theirs, shapes[r.theirs], wanted(r)) for r in table if shapes.get(r.theirs, wanted(r)) != wanted(r)]
    if missing or extra or misshapen:
        raise WeightError(_difference(where, missing, extra, misshapen, shapes, family))


def _attention(model: spec.Model) -> tuple[spec.Attention, int]:
    mixer = model.decoder.blocks[0].mixer
    if not isinstance(mixer, spec.Attention):
        raise WeightError(f"no family's checkpoint holds a {type(mixer).__name__}")
    return mixer, mixer.head_width(model.dim)


def _tied(model: spec.Model) -> bool:
    return isinstance(model.head, spec.LMHead) and model.head.tied


def _without_prefix(table: list[Row], shapes: Mapping[str, Any], family: Family) -> tuple[list[Row], list[str]]:
    """A tied model's checkpoint may have been saved without its head, which takes the prefix off every name."""
    in_table = any(row.theirs.startswith(family.prefix) for row in table)  # GGUF's table has names of its own
    if not family.prefix or not in_table or not shapes or any(name.startswith(family.prefix) for name in shapes):
        return table, []
    bare = [Row(row.theirs.removeprefix(family.prefix), row.ours, row.via) for row in table]
    return bare, [f"the checkpoint is of the bare model (names without {family.prefix!r})"]


def _same(embedding: Tensor, head: Tensor, name: str, where: str) -> str:
    if embedding.shape == head.shape and torch.equal(embedding, head):
        return f"{name} is stored beside the embedding it is tied to, with the same values"
    raise WeightError(
        f"{where}: the config ties the head to the embedding, but {name} holds other values."
        " Set tie_word_embeddings to false in config.json to use them, or remove the tensor"
    )


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def _nothing_left_on_meta(model: nn.Module) -> None:
    left = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if left:
        raise WeightError(f"after loading, {', '.join(left[:8])} still hold no values")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _difference(
    where: str,
    missing: list[str],
    extra: list[str],
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
    shapes: Mapping[str, Any],
    family: Family,
) -> str:
    lines = [f"{where} doesn't fit a {family.name} model of its config:"]
    for title, names in (("missing", missing), ("unexpected", extra)):
        if names:
            lines.append(f"  {title} ({len(names)}): {', '.join(names[:8])}{', …' if len(names) > 8 else ''}")
    for name, is_, should in misshapen[:8]:
        turned = " (transposed?)" if is_ == should[::-1] and len(is_) == 2 else ""
        lines.append(f"  misshapen: {name} is {list(is_)}, should be {list(should)}{turned}")
    if len(misshapen) > 8:
        lines.append(f"  … and {len(misshapen) - 8} more misshapen")
    for name in missing[:3]:
        close = difflib.get_close_matches(name, extra, n=1, cutoff=0.8)
        if close:
            lines.append(f"  {close[0]} may be {name} under another name")
    if family.head in missing and family.embedding in shapes:
        lines.append("  the config says the head is not tied; if it shares the embedding, set tie_word_embeddings true")
    if extra and not missing and not misshapen:
        lines.append("  all that the model needs is there; the rest belongs to another head, or an adapter")
    return "\n".join(lines)
