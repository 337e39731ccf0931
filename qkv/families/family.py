"""What a family is: a config map, a weight table, and a tiny example. All of it data or plain functions, no torch.

A family is one module of this folder named by its Hugging Face `model_type`, with a value `FAMILY`. Being there is
enough: it is found by name, loaded and saved by its table, and tested by the whole suite.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from qkv import families
from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.spec import Attention, Model, Stack, Window
from qkv.specfile import diff

Config = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint and where it goes, read in both directions.

    `{i}` stands for the layer. Several names on our side: their rows one after another in the checkpoint's tensor.
    `via`: named transforms (`qkv.load.transforms`), applied in order on the way in and undone on the way out.
    A row whose target a model doesn't have (no bias, tied head) is not expected of its checkpoint."""

    theirs: str
    ours: str | tuple[str, ...]
    via: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


def pair(theirs: str, ours: str | tuple[str, ...], via: tuple[str, ...] = ()) -> tuple[Row, Row]:
    """The rows of a weight and of its bias."""
    targets = (ours,) if isinstance(ours, str) else ours
    weight, bias = (tuple(f"{t}.{leaf}" for t in targets) for leaf in ("weight", "bias"))
    return Row(f"{theirs}.weight", weight, via), Row(f"{theirs}.bias", bias, via)


@dataclass(frozen=True)
class Gguf:
    """A family's GGUF files: the name of their architecture, their metadata as a Hugging Face config, and the table
    of their tensors (`qkv.families.gguf.table`)."""

    arch: str
    config: Callable[[Reader], Config]
    weights: tuple[Row, ...]


@dataclass(frozen=True)
class Family:
    """`read`: config.json → spec; `write`: spec → config.json; `weights`: the table; `ignored`: tensors of old
    checkpoints that hold no weights (masks, frequencies); `prefix`: what a checkpoint of a tied base model leaves out
    of every name; `tiny` and `variants`: a config small enough to test, and changes to it that matter."""

    name: str
    title: str
    architecture: str
    read: Callable[[Reader], Model]
    write: Callable[[Model], Config]
    weights: tuple[Row, ...]
    tiny: Config
    variants: Mapping[str, Config] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prefix: str = ""
    head: str = "lm_head.weight"
    embedding: str = "model.embed_tokens.weight"
    gguf: Gguf | None = None

    def spec(self, config: Mapping[str, Any]) -> Model:
        """config.json → spec. ConfigError: a value that is wrong, or a key that this family doesn't understand."""
        reader = Reader(config, self.name)
        reader.architecture(self.architecture)
        model = replace(self.read(reader), family=self.name)
        reader.done()
        return model

    def config(self, model: Model) -> Config:
        """spec → config.json. ConfigError: this family's config can't say that."""
        model = replace(model, family=self.name)
        config = {"architectures": [self.architecture], "model_type": self.name, **self.write(model)}
        if (understood := self.spec(config)) != model:
            said = "; ".join(map(str, diff(understood, model)))
            raise ConfigError(f"a {self.name} config can't say this: {said}")
        return config


@cache
def names() -> tuple[str, ...]:
    """Every family's name."""
    helpers = {"family", "config", "gguf", "rope", "layers"}
    return tuple(sorted(m.name for m in pkgutil.iter_modules(families.__path__) if m.name not in helpers))


def find(name: object) -> Family:
    """The family of a `model_type`. ConfigError: none has that name. Only modules of this folder are ever imported."""
    if name not in names():
        raise ConfigError(f"model_type {name!r} is not a family qkv knows ({', '.join(names())})")
    return importlib.import_module(f"qkv.families.{name}").FAMILY  # type: ignore[no-any-return]


def find_gguf(arch: object) -> Family:
    """The family of a GGUF file's `general.architecture`."""
    known = {f.gguf.arch: f for f in map(find, names()) if f.gguf}
    if not isinstance(arch, str) or arch not in known:
        raise ConfigError(f"GGUF architecture {arch!r} is not one qkv reads ({', '.join(sorted(known))})")
    return known[arch]


def table() -> str:
    """The families as a Markdown table, for the README."""
    rows = [("family", "models", "attention", "position", "blocks", "GGUF")]
    for family in map(find, names()):
        stack = family.spec(family.tiny).decoder
        rows.append((f"`{family.name}`", family.title, *_summary(stack), family.gguf.arch if family.gguf else ""))
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
    places = sorted({type(p).__name__ for p in [added, *(m.position for m in mixers)] if p is not None})
    block = stack.blocks[0]
    return attention, ", ".join(places), f"{block.place}-norm {type(block.norm).__name__}, {type(block.mlp).__name__}"
