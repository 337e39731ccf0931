"""A run's log, log.jsonl: one JSON object a line, of the kinds "run", "step", "evaluation", "note" and "end".

Each line says its `step` (how many are behind) and `time`. It is on the disk's side of this process as soon as the step
is over, so a killed run has its log. Numbers that JSON doesn't have are strings: "nan", "inf", "-inf".
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qkv.errors import NotFound
from qkv.write import renamed_when_whole

NAME = "log.jsonl"
Line = dict[str, Any]


class Log:
    """Appends lines. A write that fails is an OSError, and the next line begins anew."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file = self.path.open("ab", buffering=0)
        self._torn = False

    def record(self, line: Line) -> None:
        """Write one line. OSError: the disk is full, the folder is gone."""
        said = {"kind": line["kind"], "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line}
        data = (json.dumps(plain(said), ensure_ascii=False, allow_nan=False) + "\n").encode()
        start = b"\n" if self._torn else b""
        self._torn = True
        if self._file.write(start + data) != len(start + data):
            raise OSError(f"{self.path}: only part of a line could be written: is the disk full?")
        self._torn = False

    def close(self) -> None:
        """No more lines."""
        self._file.close()


@dataclass
class History:
    """A log that was read: its lines by kind, in order. `torn`: lines that a crash left half written."""

    runs: list[Line] = field(default_factory=list)
    steps: list[Line] = field(default_factory=list)
    evaluations: list[Line] = field(default_factory=list)
    notes: list[Line] = field(default_factory=list)
    ends: list[Line] = field(default_factory=list)
    torn: int = 0

    @property
    def tokens(self) -> int:
        """Read in training."""
        return sum(int(line.get("tokens", 0)) for line in self.steps)

    @property
    def seconds(self) -> float:
        """Of training."""
        return sum(float(line.get("seconds", 0.0)) for line in self.steps)


def read(folder: Path) -> History:
    """The log of a run's folder. NotFound: it has none."""
    history = History()
    lists = {
        "run": history.runs,
        "step": history.steps,
        "evaluation": history.evaluations,
        "note": history.notes,
        "end": history.ends,
    }
    for raw in _raw(folder / NAME):
        line = _parsed(raw)
        if line is None:
            history.torn += bool(raw.strip())
        elif line["kind"] in lists:
            lists[line["kind"]].append(line)
    return history


def cut(folder: Path, step: int) -> Path | None:
    """Move the lines of steps beyond this one (-1: all), and half written ones, to log.jsonl.lost-1, -2, …, as a run
    goes on from an earlier checkpoint than it got to. The file, or None where there was nothing to move."""
    path = folder / NAME
    if not path.exists():
        return None
    kept: list[bytes] = []
    lost: list[bytes] = []
    for raw in _raw(path):
        line = _parsed(raw)
        (kept if line is not None and line["step"] <= step else lost).append(raw)
    if not lost:
        return None
    aside = next(p for n in range(1, 10**9) if not (p := path.with_name(f"{NAME}.lost-{n}")).exists())
    with renamed_when_whole(aside) as temporary:
        temporary.write_bytes(b"".join(lost))
    with renamed_when_whole(path) as temporary:
        temporary.write_bytes(b"".join(kept))
    return aside


def number(value: Any) -> float | None:
    """A number of a line; "nan" and "inf" too. None: it isn't there."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses are objects, arrays' numbers numbers, what isn't finite or known a string."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if not isinstance(value, str | int | float | bool | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _raw(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError as error:
        raise NotFound(f"{path} is not there: it is made by `qkv train`") from error


def _parsed(raw: bytes) -> Line | None:
    """A whole line of ours, or None."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line else None


def memory() -> int:
    """Bytes that this process holds in memory (its most so far, where the system doesn't say more)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource
        import sys

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
