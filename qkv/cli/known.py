"""What `show` and `diff` can describe without weights: any model reference, a spec in TOML, and well-known models whose
published config.json travels with qkv (`qkv/families/known/`), so that they can be compared without a download."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qkv.errors import ConfigError, NotFound, QkvError
from qkv.load.reference import ALIASES
from qkv.spec import Model
from qkv.strict_json import read_json

if TYPE_CHECKING:
    from qkv.load.describe import Described

FOLDER = Path(__file__).parent.parent / "families" / "known"
SHORT = {  # what a family's best-known model goes by
    "albert": "albert-base-v2",
    "bert": "bert-base-uncased",
    "distilbert": "distilbert-base-uncased",
    "electra": "electra-small-discriminator",
    "mpnet": "mpnet-base",
    "roberta": "roberta-base",
    "xlm-roberta": "xlm-roberta-base",
}
LONGEST = 1 << 20  # characters of a spec in TOML


@dataclass(frozen=True)
class Stored:
    """How packed weights are stored: the `format` in words, and the bytes of each kind (none: they aren't here)."""

    format: str
    kinds: Mapping[str, int]


@dataclass(frozen=True)
class Sketch:
    """A model's spec and where it is from. `title`: the family's, or nothing; `stored`: how packed weights are."""

    ref: str
    spec: Model
    title: str
    origin: str
    notes: tuple[str, ...] = ()
    stored: Stored | None = None


def sketch(ref: str) -> Sketch:
    """What a reference describes. A path or an alias wins over a well-known name, and `gpt2@main` asks the hub.

    Raises as `qkv.load.describe.describe`, with the nearest well-known name where nothing was found."""
    if ref.endswith(".toml"):
        return _of_toml(ref)
    name = SHORT.get(ref.lower(), ref.lower())
    if name in names() and ref not in ALIASES and not Path(ref).expanduser().exists():
        return _published(name)
    from qkv.load.describe import describe
    from qkv.load.head import with_new_head

    try:
        found = describe(ref)
    except NotFound as error:
        raise NotFound(f"{error}{_nearest(ref)}") from error
    model, _ = with_new_head(found, None, None)  # as it is loaded: a sentence-transformers folder pools its states
    return Sketch(ref, model, found.family.title, found.source.origin, found.notes, _stored(found))


def _stored(found: "Described") -> Stored | None:
    if not found.packed:
        return None
    return Stored("GGUF" if found.scheme is None else found.scheme.words, found.stored())


def names() -> tuple[str, ...]:
    """The well-known models, by file name."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def _published(name: str) -> Sketch:
    from qkv.families.family import find

    config = read_json(FOLDER / f"{name}.json")
    family = find(config["model_type"])
    origin = f"{name} = the published config of {config['_name_or_path']}, no weights"
    return Sketch(name, family.spec(config), family.title, origin)


def _of_toml(path: str) -> Sketch:
    from qkv.specfile import from_toml

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LONGEST)
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from error
    try:
        part = from_toml(text)
    except QkvError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(part, Model):
        raise ConfigError(f"{path}: holds a {type(part).__name__}, not a whole Model")
    return Sketch(path, part, "", f"{path}, a spec without weights")


def _nearest(ref: str) -> str:
    if "/" in ref or Path(ref).exists():
        return ""
    close = difflib.get_close_matches(ref.lower(), names(), n=3, cutoff=0.5)
    near = f"near it, `show` and `diff` know {', '.join(close)}"
    return "\n" + (near if close else f"`show` and `diff` know {', '.join(names())} too")
