"""Which head a checkpoint is loaded with: its own, or a new one that is asked for by name."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from qkv import spec
from qkv.errors import InputError
from qkv.families.family import Architecture, Row
from qkv.load.describe import Described

HEADS: dict[str, type[spec.Head]] = {
    "lm": spec.LMHead,
    "masked": spec.MaskedLM,
    "classify": spec.Classify,
    "tag": spec.Tag,
    "span": spec.Span,
    "replaced": spec.Replaced,
    "states": spec.States,
    "pool": spec.Pool,
}


def with_new_head(
    described: Described, new_head: str | spec.Head | None, labels: Sequence[str] | None
) -> tuple[spec.Model, Architecture]:
    """The spec with the head that is wanted, and the kind of checkpoint that has it.

    `new_head`: a name of HEADS, as the family has it, or a head's spec; None: the checkpoint's own (the pooling of a
    sentence-transformers folder). `labels`: the names of a new classifier's labels, or other names for those of the
    checkpoint's own.
    InputError: an unknown name; labels missing, of another number, for a head without, or beside a spec, which has its
    own. ConfigError: the family has no such head."""
    if labels is not None and (isinstance(labels, str) or len(labels) == 0):
        raise InputError(f"labels must be a list of names, got {labels!r}")
    if new_head is None and described.sentence is not None:
        new_head = described.sentence.head
    if new_head is None:
        return _renamed(described.spec, labels), described.architecture
    if isinstance(new_head, spec.Head):
        return _as_given(described, new_head, labels)
    if new_head not in HEADS:
        raise InputError(f"new_head {new_head!r} is not one of {', '.join(HEADS)}")
    kind = HEADS[new_head]
    labelled = kind in (spec.Classify, spec.Tag)
    if labelled != (labels is not None):
        said = "needs labels=[…], the names to choose from" if labelled else "has no labels"
        raise InputError(f"new_head={new_head!r} {said}")
    if kind is spec.Pool:
        return _pooled(described, spec.Pool())
    config = described.family.with_head(dict(described.config), kind, labels)
    return described.family.spec(config), described.family.architecture(config)


def _as_given(described: Described, head: spec.Head, labels: Sequence[str] | None) -> tuple[spec.Model, Architecture]:
    """The model with just this head."""
    if labels is not None:
        raise InputError(f"labels are not for the head {type(head).__name__}: its spec says all of it")
    if isinstance(head, spec.Pool):
        return _pooled(described, head)
    config = described.family.with_head(dict(described.config), type(head), getattr(head, "labels", None))
    return replace(described.family.spec(config), head=head), described.family.architecture(config)


def _pooled(described: Described, head: spec.Pool) -> tuple[spec.Model, Architecture]:
    """The bare model, and a vector of its states."""
    config = described.family.with_head(dict(described.config), spec.Pool, None)
    bare = described.family.spec(config)
    assert isinstance(bare.head, spec.States)
    return replace(bare, head=replace(head, pooler=bare.head.pooler)), described.family.architecture(config)


def _renamed(model: spec.Model, labels: Sequence[str] | None) -> spec.Model:
    """Other names for a classifier's labels."""
    if labels is None:
        return model
    if not isinstance(model.head, spec.Classify | spec.Tag):
        raise InputError(f"labels are for a classifier; this checkpoint's head is {type(model.head).__name__}")
    if len(labels) != len(model.head.labels):
        raise InputError(
            f"{len(labels)} labels for a head of {len(model.head.labels)} ({', '.join(model.head.labels[:8])});"
            " new_head makes one of another size"
        )
    return replace(model, head=replace(model.head, labels=tuple(labels)))


def other_names(own: spec.Head, wanted: spec.Head) -> list[str]:
    """A note where a checkpoint's own head has other names for its labels."""
    before, now = (getattr(head, "labels", ()) for head in (own, wanted))
    if before == now or len(before) != len(now):  # of another number they are new
        return []
    return [f"the head is the checkpoint's own: {_some(before)} are now called {_some(now)}"]


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")


def without_pooler(
    model: spec.Model, table: Iterable[Row], names: Collection[str], prefix: str
) -> tuple[spec.Model, list[str]]:
    """The spec without a pooler where the checkpoint has none (nothing reads it but what it was trained for), said."""
    if not isinstance(model.head, spec.States | spec.Pool) or model.head.pooler is None:
        return model, []
    pooler = {row.theirs for row in table if row.targets[0].startswith("head.pooler.")}
    if any(name in names or name.removeprefix(prefix) in names for name in pooler):
        return model, []
    return replace(model, head=replace(model.head, pooler=None)), ["the checkpoint has no pooler"]
