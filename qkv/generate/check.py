"""Is a value what its name says? InputError names it, what it may be and what it is."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from qkv.errors import InputError

LARGEST_ID = 2**24


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def whole(name: str, value: Any, low: int, high: int, also: str = "") -> None:
    """A whole number from low to high; True is none."""
    if not _is(value, Integral) or not low <= value <= high:
        raise InputError(f"{name} must be {also}a whole number from {low} to {high}, got {value!r:.80}")


def number(name: str, value: Any, low: float, high: float, also: str = "") -> None:
    """A number from low to high; a NaN is in no range."""
    if not _is(value, Real) or not low <= value <= high:
        raise InputError(f"{name} must be {also}a number from {low:g} to {high:g}, got {value!r:.80}")


def flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r:.80}")


def tuple_of(name: str, value: Any, one: type | None = None) -> tuple[Any, ...]:
    """A list or tuple as a tuple; a single value of type `one` as a tuple of it."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if one is not None and _is(value, one):
        return (value,)
    raise InputError(f"{name} must be a list, got {value!r:.80}")


def ids(name: str, values: tuple[Any, ...], most: int) -> None:
    """At most so many token ids."""
    if len(values) > most:
        raise InputError(f"{name} may hold {most} ids, got {len(values)}")
    for value in values:
        whole(name, value, 0, LARGEST_ID)


def biases(name: str, value: Any, most: int, largest: float) -> tuple[tuple[int, float], ...]:
    """{id: number} or pairs of these as pairs: at most so many, each within ±largest, no id twice."""
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise InputError(f"{name} must be {{token id: number}}, got {value!r:.80}")
    if len(value) > most:
        raise InputError(f"{name} may hold {most} ids, got {len(value)}")
    for id, bias in pairs:
        whole(f"{name}: an id", id, 0, LARGEST_ID)
        number(f"{name}[{id}]", bias, -largest, largest)
    if len({id for id, _ in pairs}) < len(value):
        raise InputError(f"{name} names an id twice")
    return tuple((int(id), float(bias)) for id, bias in pairs)


def texts(name: str, values: Iterable[Any], longest: int) -> None:
    """Texts that are neither empty nor too long."""
    for text in values:
        if not isinstance(text, str) or not text or len(text) > longest:
            got = f"one of {len(text)}" if isinstance(text, str) else repr(text)[:80]
            raise InputError(f"{name} must hold texts of 1 to {longest} characters, got {got}")
