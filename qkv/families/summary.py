"""The families as a table, for people."""

from qkv.families.family import find, names
from qkv.spec import (
    Attention,
    Classify,
    Heads,
    LMHead,
    MaskedLM,
    Replaced,
    Span,
    Stack,
    States,
    Tag,
    Window,
)

WORDS = {
    LMHead: "LM",
    MaskedLM: "masked LM",
    Heads: "pre-training",
    Classify: "classify",
    Tag: "tag",
    Span: "span",
    Replaced: "replaced",
    States: "states",
}


def table() -> str:
    """The families as a Markdown table, for the README."""
    rows = [("family", "models", "stacks", "attention", "position", "blocks", "heads", "GGUF")]
    for family in map(find, names()):
        model = family.spec(family.tiny)
        stacks = " + ".join(kind for kind in ("encoder", "decoder") if getattr(model, kind))
        heads = ", ".join(dict.fromkeys(WORDS[a.kind] for a in family.architectures))
        gguf = family.gguf.arch if family.gguf else ""
        rows.append((f"`{family.name}`", family.title, stacks, *_summary(model.last), heads, gguf))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def _summary(stack: Stack) -> tuple[str, str, str]:
    """A stack's attention, position and block in a few words each, over its blocks."""
    mixers = [b.mixer for b in stack.blocks if isinstance(b.mixer, Attention)]
    features = {
        "soft cap": any(m.softcap for m in mixers),
        "q/k norm": any(m.qk_norm for m in mixers),
        "window": any(isinstance(m.mask, Window) for m in mixers),
        "biases": any(m.qkv_bias for m in mixers),
    }
    attention = ", ".join(name for name, there in features.items() if there) or "plain"
    added = stack.embed.position
    places = sorted({type(p).__name__ for p in [added, stack.position, *(m.position for m in mixers)] if p is not None})
    block = stack.blocks[0]
    return attention, ", ".join(places), f"{block.place}-norm {type(block.norm).__name__}, {type(block.mlp).__name__}"
