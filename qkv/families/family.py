"""What a family is: a config map, a weight table, and a tiny example. All of it data or plain functions, no torch.

A family is one module of this folder named by its Hugging Face `model_type`, with a value `FAMILY`. Being there is
enough: it is found by name, loaded and saved by its table, and tested by the whole suite.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from qkv import families
from qkv.errors import ConfigError
from qkv.families.config import Reader, write_head, write_labels
from qkv.spec import Head, Model, Pool, States
from qkv.specfile import Change, diff

Config = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One tensor of a checkpoint and where it goes, read in both directions.

    `{i}` stands for the layer. Several names on our side: their rows one after another in the checkpoint's tensor.
    `via`: named transforms (`qkv.load.transforms`), applied in order on the way in and undone on the way out.
    A row whose target a model doesn't have (no bias, tied head) is not expected of its checkpoint. `beside` and
    `without`: a parameter that the model must have too, or must not have, where one of ours has several names there."""

    theirs: str
    ours: str | tuple[str, ...]
    via: tuple[str, ...] = ()
    beside: str = ""
    without: str = ""

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
class Architecture:
    """One kind of a family's checkpoints: the class that its config names, and the head that it has.

    `head`: what the config says of it (None: `Family.read` says), of the class `kind`. `rows`: its tensors.
    `write`: what this family's config says of it beyond what all do (`qkv.families.config.write_head`).
    `bare`: they are stored without the family's prefix. `only`: "encoder" where there is no decoder beside it.
    `leftovers`: tensors of other heads that published checkpoints of this kind also hold; they are left aside."""

    name: str
    kind: type[Head]
    head: Callable[[Reader], Head] | None = None
    rows: tuple[Row, ...] = ()
    write: Callable[[Head], Config] = lambda head: {}
    bare: bool = False
    only: Literal["encoder"] | None = None
    leftovers: tuple[str, ...] = ()

    def shape(self, model: Model) -> Model:
        """The family's model with the stacks that this kind has."""
        return replace(model, decoder=None, start=None, one_table=True) if self.only == "encoder" else model


@dataclass(frozen=True)
class Family:
    """`read`: config.json → spec, with the head of the first architecture; `write`: spec → config.json, without what
    the head says; `weights`: the table of the stacks; `copies`: tensors that some checkpoints hold twice, and of what;
    `ignored`: tensors of old checkpoints that hold no weights (masks, frequencies); `renamed`: endings of names in old
    checkpoints, and what they are now; `prefix`: what a checkpoint of the bare model leaves
    out of every name; `tiny` and `variants`: a config small enough to test, and changes to it that matter."""

    name: str
    title: str
    architectures: tuple[Architecture, ...]
    read: Callable[[Reader], Model]
    write: Callable[[Model], Config]
    weights: tuple[Row, ...]
    tiny: Config
    variants: Mapping[str, Config] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": "model.embed_tokens.weight"})
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ""
    gguf: Gguf | None = None

    def spec(self, config: Mapping[str, Any]) -> Model:
        """config.json → spec. ConfigError: a value that is wrong, or a key that this family doesn't understand."""
        reader = Reader(config, self.name)
        architecture = self.architecture(config)
        model = architecture.shape(replace(self.read(reader), family=self.name))
        if architecture.head is not None:
            model = replace(model, head=architecture.head(reader))
        reader.done()
        return model

    def config(self, model: Model) -> Config:
        """spec → config.json. ConfigError: this family's config can't say that."""
        said: list[Change] = []
        for config, wanted, understood in self._said(model):
            if understood == wanted:
                return config
            said = said or diff(understood, wanted)
        raise ConfigError(f"the config of {self.name} can't say this: {'; '.join(map(str, said))}")

    def nearest(self, model: Model) -> Model:
        """What this family's config can say of a spec: the spec as it is read from what is written of it. ConfigError:
        the family has no such head."""
        pairs = [(len(diff(understood, said)), understood) for _, said, understood in self._said(model)]
        found = min(pairs, key=lambda pair: pair[0])[1]
        return replace(found, head=model.head) if isinstance(model.head, Pool) else found

    def _said(self, model: Model) -> Iterator[tuple[Config, Model, Model]]:
        """By architecture: the config, and the spec that it should say and that it says."""
        model = replace(model, family=self.name)
        if isinstance(model.head, Pool):  # how states are pooled is said beside it
            model = replace(model, head=States(model.head.pooler))
        for architecture in self._of_kind(type(model.head)):
            head = {**write_head(model.head), **architecture.write(model.head)}
            config = {"architectures": [architecture.name], "model_type": self.name, **self.write(model), **head}
            understood = self.spec(config)
            if isinstance(understood.head, States) and isinstance(model.head, States) and model.head.pooler is None:
                understood = replace(understood, head=model.head)  # a config doesn't say so: the tensors are not there
            yield config, model, understood

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """The kind of checkpoint that a config is of: the first, where it doesn't say. ConfigError: an unknown one."""
        said = config.get("architectures")
        if said is None:
            return self.architectures[0]
        for architecture in self.architectures:
            if said == [architecture.name]:
                return architecture
        known = " or ".join(f"[{a.name!r}]" for a in self.architectures)
        raise ConfigError(f"{self.name} config: 'architectures' is {said!r:.80}, but only {known} is supported")

    def with_head(self, config: Config, kind: type[Head], labels: Sequence[str] | None) -> Config:
        """The config of a checkpoint of the same model with another head: of the kind that it is, if that has such a
        head; to pool, of the encoder alone where the family has it (so sentence-transformers). ConfigError: the family
        has no such head."""
        said = {} if labels is None else write_labels(tuple(labels))
        of_labels = () if labels is None else ("num_labels", "_num_labels", "problem_type")
        kept = {key: value for key, value in config.items() if key not in of_labels}
        own = self.architecture(config)
        kinds = sorted(
            self._of_kind(States if kind is Pool else kind),
            key=lambda a: (kind is Pool and a.only is None, a is not own),
        )
        configs = [{**kept, "architectures": [architecture.name], **said} for architecture in kinds]
        # A head that always has the same labels (BERT's next sentence) is not one for others.
        fits = (c for c in configs if labels is None or getattr(self.spec(c).head, "labels", None) == tuple(labels))
        return next(fits, configs[0])

    def _of_kind(self, kind: type[Head]) -> list[Architecture]:
        found = [a for a in self.architectures if a.kind is kind]
        if not found:
            have = ", ".join(dict.fromkeys(a.kind.__name__ for a in self.architectures))
            raise ConfigError(f"no checkpoint of the family {self.name} has a head {kind.__name__} (it has {have})")
        return found

    def table(self, architecture: Architecture) -> tuple[Row, ...]:
        """The names in a checkpoint of this kind, with the prefix."""
        return (*self.weights, *architecture.rows)


@cache
def names() -> tuple[str, ...]:
    """Every family's name."""
    return tuple(sorted(_module(name).FAMILY.name for name in _modules()))


HELPERS = frozenset({"family", "config", "gguf", "rope", "layers", "heads", "summary", "encoders", "seq2seq"})


@cache
def _modules() -> tuple[str, ...]:
    """The files of this folder that are families: a model_type, with _ for -."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(families.__path__) if m.name not in HELPERS))


def _module(name: str) -> Any:
    return importlib.import_module(f"qkv.families.{name}")


def find(name: object) -> Family:
    """The family of a `model_type`. ConfigError: none has that name. Only modules of this folder are ever imported."""
    file = name.replace("-", "_") if isinstance(name, str) else ""
    if file not in _modules() or _module(file).FAMILY.name != name:
        raise ConfigError(f"model_type {name!r} is not a family qkv knows ({', '.join(names())})")
    return _module(file).FAMILY  # type: ignore[no-any-return]


def find_gguf(arch: object) -> Family:
    """The family of a GGUF file's `general.architecture`."""
    known = {f.gguf.arch: f for f in map(find, names()) if f.gguf}
    if not isinstance(arch, str) or arch not in known:
        raise ConfigError(f"GGUF architecture {arch!r} is not one qkv reads ({', '.join(sorted(known))})")
    return known[arch]
