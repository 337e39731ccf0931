"""JSON from strangers: read strictly, or refused with what is wrong with it.

One object, every key once, no NaN, of bounded size and depth: what is checked here is what any other reader sees.
"""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

from qkv.errors import CorruptFile, NotFound, QkvError

MAX_BYTES = 16 << 20  # bytes of a file where its reader names no other limit
MAX_DEPTH = 64  # levels of nesting; real files have fewer than 10

T = TypeVar("T", dict[str, Any], list[Any])


def read_json(path: Path, limit: int = MAX_BYTES, *, error: type[QkvError] = CorruptFile) -> dict[str, Any]:
    """Read a JSON object from `path`, of at most `limit` bytes.

    Raises NotFound where it is not there or can't be read; `error` where it is too long, no regular file, not UTF-8,
    not JSON, not an object, nested more than 64 deep, names a key twice, or holds NaN or an infinity (RFC 8259 has
    neither).
    """
    return _parse(_read(path, limit, error), str(path), error, dict)


def read_json_list(path: Path, limit: int = MAX_BYTES, *, error: type[QkvError] = CorruptFile) -> list[Any]:
    """`read_json` where the file holds a list, of objects by the same rules."""
    return _parse(_read(path, limit, error), str(path), error, list)


def parse_json(raw: bytes, *, where: str, error: type[QkvError] = CorruptFile) -> dict[str, Any]:
    """`read_json`'s rules for bytes that are already in memory; `where` is named in its errors."""
    return _parse(raw, where, error, dict)


def _read(path: Path, limit: int, error: type[QkvError]) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path}: not a regular file")
        if status.st_size > limit:
            raise error(f"{path}: {status.st_size:,} bytes; a JSON file of more than {limit:,} bytes is refused here")
        return path.read_bytes()
    except OSError as reason:
        raise NotFound(f"{path}: {reason.strerror or reason}") from reason


def _parse(raw: bytes, where: str, error: type[QkvError], kind: type[T]) -> T:
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not UTF-8 (byte {reason.start})") from reason
    except RecursionError as reason:
        raise error(f"{where}: nested more than {MAX_DEPTH} levels deep") from reason
    except ValueError as reason:
        raise error(f"{where}: not valid JSON: {reason}{_looks_like(raw)}") from reason
    if not isinstance(value, kind):
        raise error(f"{where}: must be a JSON {_NAMES[kind]}, and is {_brief(value)}")
    if _deeper_than(value, MAX_DEPTH):
        raise error(f"{where}: nested more than {MAX_DEPTH} levels deep")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        (key, times), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key!r} appears {times} times in one object")
    return table


def _no_constant(literal: str) -> Any:
    raise ValueError(f"{literal} is not a JSON number")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"{literal} is beyond the range of a float")
    return value


_NESTED = frozenset((dict, list))
_NAMES: dict[type, str] = {dict: "object", list: "list"}


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if type(child) in _NESTED  # not isinstance: it runs once for each entry of a vocabulary
        ]
        if not level:
            return False
    return True


def _looks_like(raw: bytes) -> str:
    head = raw[:64].lstrip().lower()
    if not raw.strip(b"\0 \n\r\t"):
        return " (the file is empty: a failed download?)"
    if head.startswith(b"<"):
        return " (it looks like HTML: a failed download?)"
    if head.startswith(b"version https://git-lfs"):
        return " (it is a Git LFS pointer, not the file: run `git lfs pull`)"
    if head.startswith(b"\xef\xbb\xbf"):
        return " (it starts with a byte-order mark: save it as plain UTF-8)"
    return ""


def _brief(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
