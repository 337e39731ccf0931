"""Recipes as TOML files: one may stand on another, and single values are changed from outside. No torch.

    base = "base.toml"        # relative to this file; its tables are merged with these, its lists replaced
    [train]
    lr = 3e-4

    recipe = load("recipes/translate.toml", ["train.steps=100", "train.clip=none"])

What is said later wins, also over what it excludes: `train.steps` over an inherited `train.epochs`. "none" takes a
value back. `name` is never inherited: it is the file's own, without .toml, where it doesn't say one. `data.root` is
relative to the file that says it (in an override: to the working folder) and comes out absolute.
"""

import hashlib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import ValidationError

from qkv.errors import ConfigError, NotFound
from qkv.specfile import Data, nearest, say, toml
from qkv.train.recipe import Recipe, Section
from qkv.train.recipe_errors import dotted, explain, fields, sections

Keys = tuple[str, ...]
OVERRIDE = "the command line"
NONE: Final = "none"  # TOML has no null

# Of each group one is said; what else belongs to it goes with it.
_GROUPS: Mapping[Keys, tuple[Keys, ...]] = {
    ("model",): (("from",), ("config",), ("spec",)),
    ("tokenizer",): (("from",), ("train", "vocab", "lowercase")),
    ("batch",): (("sequences",), ("tokens",)),
    ("train",): (("steps",), ("epochs",), ("minutes",)),
}
# What doesn't shape the weights: where things are, who makes batches, what is written and shown.
_ASIDE = {("name",), ("data", "root"), ("data", "workers"), ("save",), ("watch",), ("eval", "samples")}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, with `overrides` ("train.lr=3e-4": the key with its dots, the value as in TOML; what isn't
    TOML is a text). NotFound: a file; ConfigError names the file, the key and the nearest that exists."""
    path = Path(path)
    layers = [*_layers(path, ()), (OVERRIDE, _rooted(_overrides(overrides), Path.cwd()))]
    merged: Data = {}
    where: dict[tuple[str | int, ...], str] = {}
    for origin, table in layers:
        merged = merge(merged, table)
        where.update((key, origin) for key, _ in _leaves(table))
    merged.setdefault("name", path.stem)
    if isinstance(merged.get("data"), dict):
        merged["data"].setdefault("root", os.path.abspath(path.parent))
    return _valid(merged, where, str(path))


def resolved(recipe: Recipe) -> str:
    """All of a recipe as TOML that `load` reads as the same recipe. ConfigError: a value that TOML can't say."""
    return toml(_plain(recipe, ()))


def digest(recipe: Recipe) -> str:
    """64 hex digits that are the same for recipes which train the same weights of the same data: without name, places,
    workers, and what is saved, logged and shown."""
    return hashlib.sha256(json.dumps(_shaping(recipe), sort_keys=True).encode()).hexdigest()


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs of two recipes, of what shapes the weights: ["train.lr: 0.001 → 0.003"]."""
    a, b = (dict(_leaves(_shaping(recipe))) for recipe in (old, new))
    keys = dict.fromkeys([*a, *b])
    return [f"{dotted(key)}: {_say(a.get(key))} → {_say(b.get(key))}" for key in keys if a.get(key) != b.get(key)]


# --- files and overrides --------------------------------------------------------------------------------------------


def _layers(path: Path, above: tuple[Path, ...]) -> Iterator[tuple[str, Data]]:
    """A file's table and those that it stands on, the lowest first, each with the file's name."""
    table, real = _read(path, above[-1] if above else None), path.resolve()
    if real in [one.resolve() for one in above]:
        chain = " → ".join(str(one) for one in (*above, path))
        raise ConfigError(f"{path}: a recipe stands on itself: {chain}; one 'base' must go")
    base = table.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base must be the name of one file, got {base!r:.80}")
        for origin, lower in _layers(path.parent / base, (*above, path)):
            lower.pop("name", None)
            yield origin, lower
    yield str(path), _rooted(table, path.parent)


def _read(path: Path, asks: Path | None) -> Data:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        beside = [str(other) for other in path.parent.glob("*.toml")]
        asked = f"{asks}: its base " if asks is not None else ""
        raise NotFound(f"{asked}{path}: {error.strerror or error}{nearest(path, beside)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep to be a recipe") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _rooted(table: Data, folder: Path) -> Data:
    data = table.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = os.path.abspath(folder / Path(data["root"]).expanduser())
    return table


def _overrides(said: Sequence[str]) -> Data:
    """All of them as one table. ConfigError: no key or no value, or a key twice."""
    tables: Data = {}
    seen: dict[Keys, str] = {}
    for one in said:
        key, equals, value = one.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path) or not value.strip():
            raise ConfigError(f"{OVERRIDE}: {one!r} is no change of a recipe: write it as train.lr=3e-4")
        for other in seen:
            if other[: len(path)] == path or path[: len(other)] == other:
                raise ConfigError(f"{OVERRIDE}: {seen[other]!r} and {one!r} say the same key; keep one")
        seen[path] = one
        at = tables
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = _value(one, value.strip())
    return tables


def _value(one: str, text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text[0] in "[{\"'":
            raise ConfigError(f"{OVERRIDE}: {one!r}: the value is not TOML: {error}") from error
        return text
    if set(found) != {"value"}:
        raise ConfigError(f"{OVERRIDE}: {one!r} says more than one value")
    return text if isinstance(found["value"], date | datetime | time) else found["value"]


# --- tables ---------------------------------------------------------------------------------------------------------


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: Keys = ()) -> Data:
    """`over` on `base`: tables deeply, all else replaced. What `over` says takes away what it excludes, and another
    kind of objective the settings that it doesn't know."""
    kept = {key: value for key, value in base.items() if key not in _excluded(over, path)}
    if path == ("objective",) and over.get("kind", base.get("kind")) != base.get("kind"):
        known = {
            key for section in sections(Recipe.model_fields["objective"].annotation, over) for key in fields(section)
        }
        kept = {key: value for key, value in kept.items() if key in known}
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(kept.get(key), Mapping)
        kept[key] = merge(kept[key], value, (*path, key)) if both else value
    return kept


def _excluded(over: Mapping[str, Any], path: Keys) -> set[str]:
    groups = _GROUPS.get(path, ())
    said = [group for group in groups if over.get(group[0], NONE) != NONE]
    return {key for group in groups if said and group not in said for key in group}


def _leaves(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every value that is no table (or an empty one), by its path."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


# --- between tables and recipes -------------------------------------------------------------------------------------


def _valid(data: Data, where: Mapping[tuple[str | int, ...], str], file: str) -> Recipe:
    data = _nulls(data, [Recipe])
    try:
        # Of JSON pydantic makes tuples even where it is strict: no "100" for a number, no 1 for true. (A date, which
        # no setting is, becomes a text.)
        return Recipe.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise explain(error, data, where, file) from None


def _nulls(table: Data, known: Sequence[type[Section]]) -> Data:
    """The table with None where a setting that may be left out is "none"."""
    out = dict(table)
    for key, value in table.items():
        for field in (f for section in known for name, f in fields(section).items() if name == key):
            if value == NONE and type(None) in get_args(field.annotation):
                out[key] = None
            elif isinstance(value, dict):
                out[key] = _nulls(value, sections(field.annotation, value))
    return out


def _plain(value: Any, path: Keys) -> Any:
    """A section's table, None left out where it is what stands anyway."""
    if isinstance(value, Section):
        table = {}
        for key, field in fields(type(value)).items():
            name = next(name for name, f in type(value).model_fields.items() if f is field)
            own = getattr(value, name)
            if own == NONE and type(None) in get_args(field.annotation):
                raise ConfigError(f"{dotted((*path, key))} is the text {NONE!r}, which in TOML means nothing at all")
            if own is None and field.default is not None:
                table[key] = NONE
            elif own not in (None, (), {}) or own != field.default:
                table[key] = _plain(own, (*path, key))
        return {key: inner for key, inner in table.items() if inner is not None}
    if isinstance(value, Mapping):
        return {key: _plain(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner, path) for inner in value]
    if value is None:
        raise ConfigError(f"{dotted(path)} holds None, which TOML can't say; leave it out")
    return value


def _shaping(recipe: Recipe) -> Data:
    def without(table: Mapping[str, Any], path: Keys) -> Data:
        kept = {key: value for key, value in table.items() if (*path, key) not in _ASIDE}
        return {k: without(v, (*path, k)) if isinstance(v, Mapping) else v for k, v in kept.items()}

    return without(_plain(recipe, ()), ())


def _say(value: Any) -> str:
    return f"{value!r:.80}" if isinstance(value, str | list | dict) else say(value)
