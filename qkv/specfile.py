"""Specs as data: to and from dictionaries, JSON and TOML, and what differs between two of them. No torch.

    to_toml(model)                       # kind = "Model", vocab = 49152, …
    from_toml(text) == model
    [str(c) for c in diff(gpt2, llama)]  # 'decoder.blocks[0].mlp: Plain(width=3072, …) → Gated(width=11008, …)'

A part is a table whose `kind` is its class name; fields at their default are left out. Parts of your own work too: they
are known from the moment their class exists (`Part.kinds`).
"""

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from qkv.errors import ConfigError
from qkv.spec import Block, Part, Stack

Data = dict[str, Any]

# --- dictionaries ---------------------------------------------------------------------------------------------------

_NOTHING: Final = {"kind": "None"}  # an optional field set to None against its default: TOML has no null


def to_dict(part: Part) -> Data:
    """A part as plain data: `kind`, and the fields that are not at their default.

    ConfigError: a class that could not be read back, since another has its name or a field is called `kind`."""
    kind = type(part).__name__
    if Part.kinds.get(kind) is not type(part):
        raise ConfigError(f"two kinds of part are named {kind}; only the one defined last can be saved")
    if hasattr(part, "kind"):
        raise ConfigError(f"{kind}.kind can't be saved: 'kind' is where a part's own name stands; rename the field")
    return {"kind": kind, **{name: _plain(value) for name, value in _set(part)}}


def from_dict(data: Mapping[str, Any]) -> Part:
    """`to_dict` undone. ConfigError names the place, the unknown kind or key and the nearest that exists."""
    return _part(data, "")


def _set(part: Part) -> Iterator[tuple[str, Any]]:
    """The fields that are not at their default."""
    for f in dataclasses.fields(part):
        value = getattr(part, f.name)
        if value != _default(f):
            yield f.name, value


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _plain(value: Any) -> Any:
    if value is None:
        return dict(_NOTHING)
    if isinstance(value, Part):
        return to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _part(data: Mapping[str, Any], path: str) -> Part:
    at = f"{path}: " if path else ""
    if "kind" not in data:
        raise ConfigError(f"{at}a part needs a 'kind' (it has {', '.join(map(repr, data)) or 'nothing'})")
    kind = data["kind"]
    cls = Part.kinds.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ConfigError(f"{at}there is no part of kind {kind!r}{nearest(kind, Part.kinds)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = [key for key in data if key != "kind" and key not in fields]
    if unknown:
        raise ConfigError(f"{at}{kind} has no field {unknown[0]!r}{nearest(unknown[0], fields)}")
    for name, f in fields.items():
        if name not in data and _default(f) is dataclasses.MISSING:
            raise ConfigError(f"{at}{kind}.{name} is missing")
    values = {key: _value(value, _join(path, key)) for key, value in data.items() if key != "kind"}
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{at}{error}") from error


def _value(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return None if value == _NOTHING else _part(value, path)
    if isinstance(value, list):
        return tuple(_value(v, f"{path}[{i}]") for i, v in enumerate(value))
    return value


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of a message: the known word that is most like this one, if any is."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- JSON and TOML --------------------------------------------------------------------------------------------------


def to_json(part: Part) -> str:
    """A part as a JSON object, indented."""
    return json.dumps(to_dict(part), indent=2, ensure_ascii=False)


def from_json(text: str) -> Part:
    """`to_json` undone. ConfigError: no JSON object, a key twice, or as in `from_dict`."""
    with _explained("JSON"):
        data = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(data, dict):
            raise ConfigError(f"a spec must be a JSON object, not {type(data).__name__}")
        return from_dict(data)


def to_toml(part: Part) -> str:
    """A part as TOML: one table a part, small ones in one line."""
    return toml(to_dict(part))


def toml(table: Data) -> str:
    """Plain data (texts, numbers, truths, lists, tables) as TOML."""
    return "\n".join(_table(table, "")) + "\n"


def from_toml(text: str) -> Part:
    """`to_toml` undone. ConfigError: not TOML, or as in `from_dict`."""
    with _explained("TOML"):
        return from_dict(tomllib.loads(text))


@contextmanager
def _explained(language: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError("a spec is nested too deep to be one") from error
    except ValueError as error:
        raise ConfigError(f"a spec is not valid {language}: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> Data:
    table = dict(pairs)
    if len(table) != len(pairs):
        twice = next(key for key, _ in pairs if sum(k == key for k, _ in pairs) > 1)
        raise ValueError(f"key {twice!r} appears twice in one object")
    return table


_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ONE_LINE = 96  # characters up to which a table without tables inside is written in one line


def _table(table: Data, path: str) -> Iterator[str]:
    """The lines of a table: first what takes one line each, since a header ends the table above it."""
    later = []
    for key, value in table.items():
        line = f"{_key(key)} = {_inline(value)}"
        if _is_wide(value) and len(line) > _ONE_LINE:
            later.append((key, value))
        else:
            yield line
    for key, value in later:
        name = f"{path}.{_key(key)}" if path else _key(key)
        many = isinstance(value, list)
        for item in value if many else [value]:
            yield from ("", f"[[{name}]]" if many else f"[{name}]", *_table(item, name))


def _is_wide(value: Any) -> bool:
    """Whether it may be written as [table] or [[tables]]."""
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(v, dict) for v in value))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _string(value) if isinstance(value, str) else repr(value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's too, but for DEL, which TOML alone forbids.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- what differs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One place where two specs differ, as `decoder.blocks[0].mixer.kv_heads`, and what stands there in each.

    A part stands for itself where the two have different kinds of part (or one has none). Blocks are counted in the
    pattern that both repeat: `blocks[0-4,6]` differ in the same way."""

    path: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.path or 'spec'}: {say(self.left)} → {say(self.right)}"


def diff(a: Part, b: Part) -> list[Change]:
    """Every difference between two parts, in the order of their fields; empty where they are equal."""
    if a == b:
        return []
    return list(_walk(a, b, ""))


def say(value: Any) -> str:
    """A value of a spec in a line: `none`, `yes`, `8192`, `Rotary(base=100000, dims=32)`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        return "(" + ", ".join(map(say, value)) + ")"
    if isinstance(value, Part):
        return f"{type(value).__name__}({', '.join(f'{name}={say(v)}' for name, v in _set(value))})"
    return str(value)


def _walk(a: Any, b: Any, path: str) -> Iterator[Change]:
    if a == b:
        return
    if isinstance(a, Part) and type(a) is type(b):
        for f in dataclasses.fields(a):
            left, right, where = getattr(a, f.name), getattr(b, f.name), _join(path, f.name)
            if isinstance(a, Stack) and isinstance(b, Stack) and f.name == "blocks":
                yield from _patterns(a, b, where)
            else:
                yield from _walk(left, right, where)
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _walk(left, right, f"{path}[{i}]")
    else:
        yield Change(path, a, b)


def _patterns(a: Stack, b: Stack, path: str) -> Iterator[Change]:
    """Blocks that repeat, compared over the length at which both patterns begin anew (or the taller stack's end)."""
    if a.blocks == b.blocks:
        return
    length = min(math.lcm(len(a.blocks), len(b.blocks)), max(a.layers, b.layers))
    found: dict[tuple[str, Any, Any], list[int]] = {}
    for i in range(length):
        left, right = _turn(a, i), _turn(b, i)
        for change in _walk(left, right, ""):
            found.setdefault((change.path, change.left, change.right), []).append(i)
    for (rest, left, right), places in found.items():
        where = f"{path}[{_ranges(places)}]"
        yield Change(f"{where}.{rest}" if rest else where, left, right)
    if not found:  # the same block, written once and written several times
        yield Change(path, a.blocks, b.blocks)


def _turn(stack: Stack, i: int) -> Block:
    return stack.blocks[i % len(stack.blocks)]


def _ranges(numbers: list[int]) -> str:
    """0, 1, 2, 4 → "0-2,4"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
