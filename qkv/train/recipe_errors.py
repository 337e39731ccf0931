"""What pydantic finds wrong in a recipe, as a person reads it: file, dotted key, what was given, what was meant."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from qkv.errors import ConfigError
from qkv.specfile import nearest
from qkv.train.recipe import Recipe, Section

Path = tuple[str | int, ...]
_SHOWN = 8  # problems that one message names
_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def explain(error: ValidationError, data: Mapping[str, Any], where: Mapping[Path, str], file: str) -> ConfigError:
    """All that is wrong. `where`: which file said a key; `file`: the recipe, for what none said."""
    found: dict[Path, list[Any]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_path(one, data), []).append(one)
    # Of a value that may be of several kinds, what is wrong inside says more than that it is not of the others.
    inner = [path for path in found if not any(other[: len(path)] == path and other != path for other in found)]
    said = [f"{_file(path, where, file)}: {_say(path, found[path], data)}" for path in inner or found]
    more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
    return ConfigError("\n".join([*said[:_SHOWN], *more]))


def fields(section: type[Section]) -> dict[str, Any]:
    """A table's keys as TOML has them, and what pydantic knows of each."""
    return {f.alias or name: f for name, f in section.model_fields.items()}


def sections(annotation: Any, data: Any = None) -> list[type[Section]]:
    """The tables that a value may be; of several with a `kind`, the one that `data` names, if it does."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    found = [section for part in get_args(annotation) for section in sections(part)]
    kind = data.get("kind") if isinstance(data, Mapping) else None
    return [section for section in found if kind in _kinds(section)] or found


def _kinds(section: type[Section]) -> tuple[Any, ...]:
    field = section.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else ()


def _path(error: Any, data: Any) -> Path:
    """Where it is in the data. pydantic also names the alternatives that it tried on the way."""
    path: list[str | int] = []
    at = data
    for step in error["loc"]:
        inside = step in at if isinstance(at, Mapping) else isinstance(at, list) and isinstance(step, int)
        if inside:
            path.append(step)
            at = at[step]
    if error["type"] == "missing":
        path.append(error["loc"][-1])
    return tuple(path)


def _file(path: Path, where: Mapping[Path, str], file: str) -> str:
    """Who said it: the key itself, or else the last that said something inside it."""
    inside = [name for key, name in where.items() if key[: len(path)] == path and path]
    return where.get(path) or (inside[-1] if inside else next(_above(path, where), file))


def _above(path: Path, where: Mapping[Path, str]) -> Iterator[str]:
    return (where[path[:n]] for n in range(len(path) - 1, 0, -1) if path[:n] in where)


def dotted(path: Path) -> str:
    """data.train[1].path"""
    return re.sub(r"\.\[", "[", ".".join(f"[{step}]" if isinstance(step, int) else step for step in path))


def _say(path: Path, errors: Sequence[Any], data: Mapping[str, Any]) -> str:
    key, first = dotted(path), errors[0]
    kind, given = first["type"], f"{first.get('input')!r:.80}"
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"there is no {key}{_near(path, data)}"
    if kind == "union_tag_not_found":
        return f"{key}.kind is missing: say one of {_every_kind(path)}"
    if kind == "union_tag_invalid":
        tag, known = first["ctx"]["tag"], re.findall(r"'(\w+)'", first["ctx"]["expected_tags"])
        return f"{key}.kind is {tag!r}, none of {', '.join(known)}{nearest(tag, known)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        return f"{key} is {given}, none of {', '.join(known)}{nearest(first['input'], known)}"
    if kind == "value_error":
        return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    words = dict.fromkeys(_WORDS[e["type"]] for e in errors if e["type"] in _WORDS)
    must = f"be {' or '.join(words)}" if words else re.sub(r"^\w+ should | after validation.*", "", first["msg"])
    return f"{key} must {must}, got {given}"


def _every_kind(path: Path) -> str:
    found = sections(Recipe.model_fields[str(path[-1])].annotation)
    return ", ".join(kind for section in found for kind in _kinds(section))


def _near(path: Path, data: Mapping[str, Any]) -> str:
    """The nearest key of the same table; else a key of this name in another one."""
    word = str(path[-1])
    near: list[type[Section]] = [Recipe]
    at: Any = data
    for step in path[:-1]:
        at = at[step]
        if isinstance(step, str):
            near = [s for section in near for s in sections(fields(section)[step].annotation, at)]
    names = [key for section in near for key in fields(section) if nearest(word, [key])]
    own = nearest(dotted(path), [dotted((*path[:-1], key)) for key in names])
    elsewhere = [key for key in _all() if key.rsplit(".", 1)[-1] == word]
    if not own and dotted(path) in elsewhere:
        return f" where kind is {at.get('kind')!r}"
    return own or nearest(elsewhere[0], elsewhere[:1]) if elsewhere else own


def _all() -> Iterator[str]:
    """Every key of a table of the recipe."""
    for name, field in fields(Recipe).items():
        yield name
        yield from dict.fromkeys(f"{name}.{key}" for section in sections(field.annotation) for key in fields(section))
