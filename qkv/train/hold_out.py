"""Which part of the data a record falls to: by hashes, so that it is the same at each run and in any order."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from qkv.errors import InputError
from qkv.train.recipe import HoldOut

Part = Literal["train", "valid", "test"]
Record = Mapping[str, Any]
Falls = Callable[[Record, Record], Part]  # of a record, and of the row of the file that it was made of


def named(held: HoldOut | None) -> tuple[str, ...]:
    """The fields that `by` names."""
    by = () if held is None or held.by is None else held.by
    return (by,) if isinstance(by, str) else by


def falls(held: HoldOut, every: Callable[[], Iterable[tuple[Record, Record]]]) -> Falls:
    """Says which part a record falls to; an InputError there: it lacks a field of `by`.

    No field or one: by the hash of the record or of that field, and nothing else matters. Several: records that agree
    in any of them, and those that these agree with, and so on, are a group, which falls to one part by a hash of its
    values. `every`: all records, which are read for that beforehand. Of each value 64 bits are kept in memory."""
    fields = named(held)
    if len(fields) < 2:
        return lambda record, row: _part(held, number(_value(fields[0], record, row) if fields else text(record)))
    groups = _Groups()
    for record, row in every():
        try:
            groups.join(_values(fields, record, row))
        except InputError:
            continue  # it is told when the record itself comes
    return lambda record, row: _part(held, number(str(groups.of(_values(fields, record, row)[0]))))


def text(value: Any) -> str:
    """A value as a text, the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def number(said: str) -> int:
    """The first 64 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _part(held: HoldOut, drawn: int) -> Part:
    at = drawn / 2**64
    return "valid" if at < held.valid else "test" if at < held.valid + held.test else "train"


def _value(field: str, record: Record, row: Record) -> str:
    if field not in record and field not in row:
        raise InputError(f"data.hold_out.by is {field!r}, which the record doesn't have; it has {', '.join(row)}")
    value = record[field] if field in record else row[field]
    return value if isinstance(value, str) else text(value)


def _values(fields: tuple[str, ...], record: Record, row: Record) -> list[int]:
    """Numbers of a record's values; the same text in two fields is two values."""
    return [number(f"{field}\0{_value(field, record, row)}") for field in fields]


class _Groups:
    """Values that belong together (a forest of disjoint sets). A group is known by its smallest number, whatever the
    order in which it grew. That number isn't drawn evenly, so it is hashed once more to draw a part."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def of(self, value: int) -> int:
        """The smallest number of the value's group."""
        above = self._above
        while (up := above.setdefault(value, value)) != value:
            above[value] = value = above[up]
        return value

    def join(self, values: list[int]) -> None:
        """Make one group of the groups of these."""
        roots = [self.of(value) for value in values]
        for root in roots:
            self._above[root] = min(roots)
