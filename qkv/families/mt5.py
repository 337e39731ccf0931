"""mT5 (arXiv 2010.11934): T5 v1.1 for a hundred languages, whose states are never scaled before the head."""

from dataclasses import replace

from qkv.families.config import Reader
from qkv.families.family import Family
from qkv.families.t5 import COPIES, ROWS, SHARED, TINY, UNUSED, VARIANTS, architectures, read_like_t5, write
from qkv.spec import LMHead, Model


def read(config: Reader) -> Model:
    model = read_like_t5(config, "MT5", projection="gated-gelu")
    return replace(model, head=LMHead(tied=config.flag("tie_word_embeddings", default=True)))


FAMILY = Family(
    name="mt5",
    title="mT5",
    architectures=architectures("MT5"),
    read=read,
    write=write,
    weights=ROWS,
    prefix="transformer.",
    copies={**COPIES, "lm_head.weight": SHARED},
    ignored=(UNUSED, f"transformer.{UNUSED}"),
    tiny=TINY,
    variants={
        **{name: change for name, change in VARIANTS.items() if "architectures" not in change},
        "relu": {"feed_forward_proj": "relu"},
    },
)
