"""Where a checkpoint doesn't fit its model, in words."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from qkv.families.family import Family


def difference(
    where: str,
    missing: list[str],
    extra: list[str],
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
    shapes: Mapping[str, Any],
    family: Family,
) -> str:
    """A table of what a checkpoint's names and shapes have against a model's, and a guess at why. `misshapen`: name,
    shape, and what it should be; `shapes`: all that the checkpoint holds."""
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
    if any(family.copies.get(name) in shapes for name in missing):
        lines.append("  the config says the head is not tied; if it shares the embedding, set tie_word_embeddings true")
    if extra and not missing and not misshapen:
        lines.append("  all that the model needs is there; the rest belongs to another head, or an adapter")
    lines += _way_out(missing, family)
    return "\n".join(lines)


def _way_out(missing: list[str], family: Family) -> Iterator[str]:
    """The way out where it is the head that is missing."""
    heads = {row.theirs for architecture in family.architectures for row in architecture.rows}
    if missing and heads >= set(missing):
        yield "  the checkpoint lacks this head: ask for a new one, to be trained, by new_head"
