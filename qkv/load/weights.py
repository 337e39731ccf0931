"""Filling a model from a checkpoint, and the way back, by one weight table. Strict: nothing is left over on either
side, or WeightError with what is missing, unexpected or misshapen, before any weight is read."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qkv import spec
from qkv.errors import WeightError
from qkv.families.family import Architecture, Family, Row
from qkv.load.checkpoint import Checkpoint, Renamed
from qkv.load.difference import difference
from qkv.load.transforms import BY_ROW, TURN, give, take
from qkv.nn.packed import Packed, named_weights, plain
from qkv.nn.parts import build
from qkv.nn.stack import Transformer


def expand(rows: Iterable[Row], model: Transformer) -> list[Row]:
    """The table for this model: a row for each layer, and only rows whose targets it has."""
    have = set(named_weights(model))
    out = []
    for row in rows:
        for i in range(_turns(row, model.spec)):
            targets = tuple(t.replace("{i}", str(i)) for t in row.targets)
            beside, without = (name.replace("{i}", str(i)) for name in (row.beside, row.without))
            if have >= {*targets, beside or targets[0]} and without not in have:
                out.append(Row(row.theirs.replace("{i}", str(i)), targets, row.via))
    covered = Counter(t for row in out for t in row.targets)
    if covered.keys() != have or max(covered.values()) > 1:
        wrong = sorted(have - covered.keys()) + [t for t, n in covered.items() if n > 1]
        raise WeightError(f"the family's weight table doesn't cover each parameter once: {', '.join(wrong[:8])}")
    return out


def _turns(row: Row, model: spec.Model) -> int:
    """How many layers a row stands for: those of its stack that have weights of their own."""
    if "{i}" not in row.theirs:
        return 1
    stack = model.encoder if row.targets[0].startswith("encoder.") else model.decoder
    return stack.built if stack is not None else 0


def fill(
    model: Transformer,
    rows: Iterable[Row],
    checkpoint: Checkpoint,
    family: Family,
    *,
    architecture: Architecture | None = None,
    new_head: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> list[str]:
    """Give every parameter of a model (on any device, meta too) its value. Returns notes on what was out of the
    ordinary. `architecture`: the kind of checkpoint (None: the family's first). `new_head`: what of the head the
    checkpoint lacks, or has in another size, is drawn at random, and what it has of another head (or of a decoder that
    the new one doesn't read) is left aside; all of it is noted. `dtype` None: as stored (where several kinds are
    stored, that of the embedding)."""
    checkpoint, notes = _with_names_of_today(checkpoint, family)
    shapes, rows = dict(checkpoint.shapes()), list(rows)
    table, said = _without_prefix(expand(rows, model), shapes, family, architecture)
    table = [_upright(row) if checkpoint.by_output(row.theirs) else row for row in table]
    drawn = [row for row in table if new_head and _of_head(row) and shapes.get(row.theirs) != _shape(row, model)]
    table = [row for row in table if row not in drawn]
    architecture = architecture or family.architectures[0]
    others = _bare_too(_other_heads(family, architecture, rows), family.prefix)
    known = others | {r.theirs for r in drawn} if new_head else _bare_too(set(architecture.leftovers), family.prefix)
    aside = known & shapes.keys() - {row.theirs for row in table}
    unread = _of_no_stack(model, rows, shapes, family.prefix) if new_head else set[str]()
    copies = {name: of for name, of in _copies(family, table, shapes).items() if name not in others}
    _check_names_and_shapes(model, table, shapes, {*copies, *aside, *unread}, checkpoint.where, family)
    tokens = next(name for name, x in model.named_parameters() if x is model.last.embed.tokens.weight)
    first = next(r for r in table if tokens in r.targets)
    for copy, original in copies.items():
        notes.append(_same(checkpoint.read(original), checkpoint.read(copy), copy, original, checkpoint.where))
    dtype = dtype or checkpoint.read(first.theirs).dtype
    converted: Counter[torch.dtype] = Counter()
    for row in table:
        kind = _take(row, model, checkpoint, dtype, device)
        converted[kind] += kind not in (dtype, torch.uint8)
    notes += said + _draw(model, drawn, dtype, device)
    notes += [f"left aside, of another head: {', '.join(sorted(aside))}"] if aside else []
    notes += [f"left aside, of the decoder, which this head doesn't read: {len(unread)} tensors"] if unread else []
    notes += [f"{n} tensors stored as {_short(d)} are held as {_short(dtype)}" for d, n in converted.items() if n]
    _nothing_left_on_meta(model)
    return notes


def _take(
    row: Row, model: Transformer, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | None
) -> torch.dtype:
    """Give a row's parameters what the checkpoint holds of them. Returns the dtype it is stored in (packed: uint8)."""
    packed = checkpoint.packed(row.theirs) if BY_ROW.issuperset(row.via) else None
    stored = checkpoint.read(row.theirs) if packed is None else packed[0]
    if packed is None and not stored.is_floating_point():
        raise WeightError(f"{checkpoint.where}: {row.theirs} holds {stored.dtype}, which are not plain weights")
    sizes = [model.get_parameter(t).shape[0] for t in row.targets]
    for target, part in zip(row.targets, take(stored, row.via, sizes, *_attention(model.spec)), strict=True):
        _set(model, target, part.to(device=device, dtype=dtype) if packed is None else Packed(part, packed[1], dtype))
    return stored.dtype


def _upright(row: Row) -> Row:
    """The row of a matrix whose rows are outputs, as ours are, where the family's own checkpoints hold it turned."""
    return replace(row, via=tuple(name for name in row.via if name != TURN))


def export(model: Transformer, family: Family) -> dict[str, Tensor]:
    """Every parameter, plain, under the names of the family's checkpoints (what is shared is stored once)."""
    return {
        row.theirs: give([plain(part) for part in parts], row.via, *_attention(model.spec))
        for row, parts in _stored(model, family)
    }


def export_packed(model: Transformer, family: Family) -> dict[str, tuple[Tensor, str | None]]:
    """`export` with what is packed left so: uint8 [outputs, bytes of a row] (in every family) and ggml's type, or a
    plain tensor and None. WeightError: one tensor of the checkpoint holds several of the model's, not all of which are
    packed, and alike."""
    return {row.theirs: _as_held(row, parts, model.spec) for row, parts in _stored(model, family)}


def _stored(model: Transformer, family: Family) -> Iterator[tuple[Row, list[Tensor | Packed]]]:
    """The rows of the model's checkpoint, and what of the model each holds."""
    weights = named_weights(model)
    architecture = family.architecture(family.config(model.spec))
    prefix = family.prefix if architecture.bare else ""
    for row in expand(family.table(architecture), model):
        yield replace(row, theirs=row.theirs.removeprefix(prefix)), [weights[target] for target in row.targets]


def _as_held(row: Row, parts: list[Tensor | Packed], model: spec.Model) -> tuple[Tensor, str | None]:
    held = [part for part in parts if isinstance(part, Packed)]
    if not held:
        return give([plain(part) for part in parts], row.via, *_attention(model)), None
    via = _upright(row).via
    if len(held) < len(parts) or len({part.kind for part in held}) > 1 or not BY_ROW.issuperset(via):
        raise WeightError(
            f"{row.theirs} holds {' and '.join(row.targets)}, which must all be packed alike or all be plain:"
            " quantize them together, or save with dequantize=True"
        )
    return give([part.blocks for part in held], via, *_attention(model)), held[0].kind


def _with_names_of_today(checkpoint: Checkpoint, family: Family) -> tuple[Checkpoint, list[str]]:
    """The checkpoint, the endings of whose names once were others."""
    names = {}
    for name in checkpoint.shapes():
        old = next((old for old in family.renamed if name.endswith(old)), None)
        names[name if old is None else name.removesuffix(old) + family.renamed[old]] = name
    if len(names) < len(checkpoint.shapes()):
        raise WeightError(f"{checkpoint.where}: holds tensors under their old and their new names")
    changed = sum(new != old for new, old in names.items())
    if not changed:
        return checkpoint, []
    return Renamed(checkpoint, names), [f"{changed} tensors have names of old ({', '.join(family.renamed)})"]


def _copies(family: Family, table: list[Row], shapes: Mapping[str, Any]) -> dict[str, str]:
    """Tensors that are stored beside the one they are tied to, and that one."""
    wanted = {row.theirs for row in table}
    named = [*family.copies.items()]
    named += [(name.removeprefix(family.prefix), of.removeprefix(family.prefix)) for name, of in named]
    return {name: of for name, of in named if name in shapes and name not in wanted and of in wanted}


def _other_heads(family: Family, architecture: Architecture, rows: Iterable[Row]) -> set[str]:
    """The tensors of all heads but this architecture's, and what is stored beside them once more."""
    all_of_them = [row for kind in family.architectures for row in kind.rows] + [row for row in rows if _of_head(row)]
    others = {row.theirs for row in all_of_them} - {row.theirs for row in architecture.rows}
    return others | {name for name, of in family.copies.items() if of in others}


def _of_no_stack(model: Transformer, rows: Iterable[Row], shapes: Mapping[str, Any], prefix: str) -> set[str]:
    """The tensors of the decoder, for a model that is the encoder alone."""
    if model.decoder is not None:
        return set()
    names = {row.theirs for row in rows if row.targets[0].startswith("decoder.")}
    return set(filter(_pattern(_bare_too(names, prefix)).fullmatch, shapes))


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Matches these names, in which {i} is any layer's number."""
    return re.compile("|".join(re.escape(name).replace(r"\{i\}", r"\d+") for name in names) or "(?!)")


def _of_head(row: Row) -> bool:
    return row.targets[0].startswith("head.")


def _bare_too(names: set[str], prefix: str) -> set[str]:
    """Names with and without the family's prefix."""
    return names | {name.removeprefix(prefix) for name in names}


def _draw(model: Transformer, drawn: list[Row], dtype: torch.dtype, device: torch.device | None) -> list[str]:
    """Random values for the new parameters of a head."""
    if not drawn:
        return []
    with torch.device("cpu"):
        head = dict(build(model.spec.head, model.spec.vocab, model.spec.dim, model.spec.width).named_parameters())
    named = []
    for target in (t for row in drawn for t in row.targets):
        fresh = head[target.removeprefix("head.")]
        _set(model, target, fresh.detach().to(device=device, dtype=dtype))
        named.append(f"{target} {list(fresh.shape)}")
    return [f"new, drawn at random as the checkpoint has none that fits (train it before use): {', '.join(named)}"]


def _check_names_and_shapes(
    model: Transformer,
    table: Sequence[Row],
    shapes: Mapping[str, tuple[int, ...]],
    known: set[str],
    where: str,
    family: Family,
) -> None:
    """Raises WeightError unless the checkpoint has the table's tensors as the model needs them, and no other (what is
    `known` and what the family ignores apart)."""
    wanted = {row.theirs: _shape(row, model) for row in table}
    ignored = _pattern(family.ignored)
    extra = sorted(n for n in shapes.keys() - wanted.keys() - known if not ignored.fullmatch(n))
    missing = sorted(wanted.keys() - shapes.keys())
    misshapen = [(n, shapes[n], shape) for n, shape in wanted.items() if shapes.get(n, shape) != shape]
    if missing or extra or misshapen:
        raise WeightError(difference(where, missing, extra, misshapen, shapes, family))


def _shape(row: Row, model: Transformer) -> tuple[int, ...]:
    """What the row's tensor must be."""
    parts = [torch.empty(model.get_parameter(t).shape, device="meta") for t in row.targets]
    return tuple(give(parts, row.via, *_attention(model.spec)).shape)


def _attention(model: spec.Model) -> tuple[spec.Attention, int]:
    mixer = model.last.blocks[0].mixer
    if not isinstance(mixer, spec.Attention):
        raise WeightError(f"no family's checkpoint holds a {type(mixer).__name__}")
    return mixer, mixer.head_width(model.dim)


def _without_prefix(
    table: list[Row], shapes: Mapping[str, Any], family: Family, architecture: Architecture | None
) -> tuple[list[Row], list[str]]:
    """The table as the checkpoint's names are: one of the bare model has no prefix before any of them."""
    in_table = any(row.theirs.startswith(family.prefix) for row in table)  # GGUF's table has names of its own
    if not family.prefix or not in_table or not shapes or any(name.startswith(family.prefix) for name in shapes):
        return table, []
    bare = [Row(row.theirs.removeprefix(family.prefix), row.ours, row.via) for row in table]
    expected = architecture is not None and architecture.bare
    return bare, [] if expected else [f"the checkpoint is of the bare model (names without {family.prefix!r})"]


def _same(original: Tensor, copy: Tensor, name: str, of: str, where: str) -> str:
    if original.shape == copy.shape and torch.equal(original, copy):
        return f"{name} is stored beside {of}, which it is tied to, with the same values"
    raise WeightError(
        f"{where}: the config ties {name} to {of}, but {name} holds other values."
        " Set tie_word_embeddings to false in config.json to use them, or remove the tensor"
    )


def _set(model: nn.Module, name: str, value: Tensor | Packed) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    delattr(owner, leaf)
    setattr(owner, leaf, value if isinstance(value, Packed) else nn.Parameter(value))


def _nothing_left_on_meta(model: nn.Module) -> None:
    left = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if left:
        raise WeightError(f"after loading, {', '.join(left[:8])} still hold no values")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
