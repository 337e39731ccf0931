"""Parts: frozen values that check themselves when they are made. A wrong one is a ConfigError with part and field."""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from qkv.errors import ConfigError


def number(low: float, high: float, default: Any = dataclasses.MISSING) -> Any:
    """A field that must lie in low..high (both included). Limits are far above any real model: they stop a corrupt
    config before it asks for memory."""
    return field(default=default, metadata={"low": low, "high": high})


C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(number, field))
def part(cls: C) -> C:
    """A class of parts: a frozen dataclass."""
    return dataclass(frozen=True)(cls)  # type: ignore[return-value]


@part
class Part:
    """A value in the tree. Subclasses are known by their class names."""

    kinds: ClassVar[dict[str, type["Part"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Part.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]  # a class is hashable
        for f in dataclasses.fields(self):
            _check(self, f, hints[f.name])
        self.check()

    def check(self) -> None:
        """What no single field shows."""

    def wrong(self, name: str, why: str) -> ConfigError:
        """The error for one field of this part."""
        return ConfigError(f"{type(self).__name__}.{name} {why}")


@cache
def _hints(kind: type[Part]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check(part: Part, f: dataclasses.Field[Any], hint: Any) -> None:
    value = getattr(part, f.name)
    kinds = get_args(hint) if get_origin(hint) not in (None, tuple, Literal) else (hint,)
    if value is None and type(None) in kinds:
        return
    kinds = tuple(k for k in kinds if k is not type(None))
    if not any(_fits(value, k) for k in kinds):
        raise part.wrong(f.name, f"must be {' or '.join(map(_say, kinds))}, got {value!r}")
    if "low" in f.metadata and not f.metadata["low"] <= value <= f.metadata["high"]:
        raise part.wrong(f.name, f"must lie in {f.metadata['low']}..{f.metadata['high']}, got {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) > 0 and all(_fits(v, get_args(kind)[0]) for v in value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return (isinstance(value, float) and math.isfinite(value)) or _fits(value, int)
    return isinstance(value, kind)


def _say(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"a tuple of {_say(get_args(kind)[0])}"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return words.get(kind) or str(kind.__name__)
