"""Samples on disk: tokenized once, as columns of whole numbers that are mapped into memory and shared by processes.

A folder holds `index.json` (written last) and, for each shard and column, `00000.ids.npy` with all values one after
another (int32) and `00000.ids.offsets.npy` with where each sample starts (int64, one more than samples). `where` is
such a column too, of UTF-8 bytes.
"""

import os
import secrets
import shutil
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkv.errors import CorruptFile, InputError, NotFound, TokenizerError
from qkv.strict_json import read_json
from qkv.train.fingerprint import Fingerprint
from qkv.train.objective import Record, Sample
from qkv.train.records import Bad, Placed
from qkv.write import write_json

INDEX = "index.json"
SHARD_VALUES = 1 << 24  # values of a shard's columns together, about: 64 MB
SHOW_EVERY = 0.2  # seconds
_SIZES, _WHERE = "sizes", "where"
_INT32 = np.iinfo(np.int32)


class Shards:
    """Samples by number. Only the folder's name goes to another process, which maps the same files."""

    def __init__(self, folder: Path) -> None:
        """Raises as `open_shards`."""
        self.folder = folder
        index = _index(folder)
        self.fingerprint: Fingerprint = index["fingerprint"]
        self.counts: dict[str, int] = index["counts"]
        """records, samples, tokens, bad (records), and of the objective cut and dropped (texts)"""
        self.bad: dict[str, str] = index["bad"]
        """why records were left out, by where they stand"""
        self._columns: list[str] = index["columns"]
        self._shards = [_Shard(folder, number, index) for number in range(len(index["shards"]))]
        ends = np.cumsum([len(shard.sizes) for shard in self._shards])
        self._starts: list[int] = [0, *ends.tolist()]
        self.sizes: NDArray[np.int32] = np.concatenate([shard.sizes for shard in self._shards])

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path]]:
        return Shards, (self.folder,)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, i: int) -> Sample:
        """A sample's columns, copied: whoever asks may write on them."""
        shard, at = self._find(i)
        return {column: shard.row(column, at).copy() for column in self._columns}

    def cut(self, i: int, start: int, stop: int) -> Sample:
        """Tokens `start` to `stop` of a sample, copied. InputError as `cut`."""
        shard, at = self._find(i)
        return cut({column: shard.row(column, at) for column in self._columns}, int(self.sizes[i]), start, stop)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def where(self, i: int) -> str:
        """Where the record of a sample stands: "file:line"."""
        shard, at = self._find(i)
        return shard.row(_WHERE, at).tobytes().decode("utf-8", "surrogateescape")

    def report(self, bad: Bad) -> None:
        """Tell of the records that were left out when these samples were made. InputError: too many."""
        for where, why in self.bad.items():
            bad.report(where, why)

    def _find(self, i: int) -> tuple["_Shard", int]:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        number = bisect_right(self._starts, i) - 1
        return self._shards[number], i - self._starts[number]


def cut(sample: Sample, size: int, start: int, stop: int) -> Sample:
    """Tokens `start` to `stop` of a sample of so many, copied. InputError: a column isn't one value a token."""
    for column, values in sample.items():
        if len(values) != size:
            raise InputError(
                f"column {column!r} has {len(values)} values for {size} tokens: such samples can't be packed"
            )
    return {column: values[start:stop].copy() for column, values in sample.items()}


class _Shard:
    def __init__(self, folder: Path, number: int, index: Mapping[str, Any]) -> None:
        said: Mapping[str, Any] = index["shards"][number]
        self.sizes = _load(folder, f"{number:05d}.{_SIZES}.npy", said["files"])
        self._values: dict[str, tuple[NDArray[Any], NDArray[np.int64]]] = {}
        for column in (*index["columns"], _WHERE):
            values = _load(folder, f"{number:05d}.{column}.npy", said["files"])
            offsets = _load(folder, f"{number:05d}.{column}.offsets.npy", said["files"])
            if len(offsets) != said["samples"] + 1 or offsets[-1] != len(values):
                raise CorruptFile(f"{folder}/{number:05d}.{column}.npy doesn't fit its offsets{_ANEW}")
            self._values[column] = values, offsets

    def row(self, column: str, i: int) -> NDArray[Any]:
        values, offsets = self._values[column]
        row: NDArray[Any] = values[offsets[i] : offsets[i + 1]]
        return row


_ANEW = ": delete the folder, and the samples are made anew"


def open_shards(folder: Path) -> Shards:
    """Samples that `build` left. NotFound: there are none; CorruptFile: one of their files is gone, cut or damaged."""
    return Shards(folder)


def build(
    placed: Iterable[Placed],
    encode: Callable[[Record], list[Sample]],
    folder: Path,
    fingerprint: Fingerprint,
    *,
    size: Callable[[Sample], int],
    bad: Bad,
    counts: Callable[[], Mapping[str, int]] = dict,
) -> Shards:
    """The samples of records, from `folder` where they were made of the same (by the fingerprint), else made there.

    A record that `encode` refuses (InputError, TokenizerError) is a bad one. `bad`, which has heard of no others yet,
    hears of those, and again where the samples are there already. `counts`: more of them, asked for at the end (the
    objective's cut and dropped texts). Written aside and renamed, so that a folder is whole or isn't there; what it
    held is replaced. Raises InputError (a bad record beyond the limit; no sample at all), CorruptFile as
    `open_shards`, OSError where the folder can't be written.
    """
    if (folder / INDEX).is_file() and _index(folder)["fingerprint"] == fingerprint:
        found = Shards(folder)
        found.report(bad)
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        writer = _Writer(aside)
        records = 0
        for one in _shown(placed):
            try:
                samples = encode(one.record)
            except (InputError, TokenizerError) as error:
                bad.report(one.where, str(error))
                continue
            records += 1
            for sample in samples:
                writer.add(sample, size(sample), one.where)
        writer.finish(fingerprint, {"records": records, "bad": bad.count, **counts()}, bad.places)
        _replace(folder, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Shards(folder)


def _shown(placed: Iterable[Placed]) -> Iterator[Placed]:
    """The same, with their number on standard error where that is a terminal, by torchrun's rank 0."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield from placed
        return
    start = last = time.monotonic()
    for number, one in enumerate(placed, 1):
        if (now := time.monotonic()) - last > SHOW_EVERY:
            last = now
            rate = number / (now - start)
            print(f"\rtokenizing: {number:,} records, {rate:,.0f}/s", end="", file=sys.stderr, flush=True)
        yield one
    print("\r\033[K", end="", file=sys.stderr, flush=True)


class _Writer:
    """Columns that grow in memory and go to disk a shard at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.columns: tuple[str, ...] | None = None
        self.shards: list[dict[str, Any]] = []
        self.samples = self.tokens = 0
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[str, list[NDArray[Any]]] = {column: [] for column in self.columns or ()}
        self._sizes: list[int] = []
        self._where: list[NDArray[Any]] = []
        self._held = 0

    def add(self, sample: Sample, size: int, where: str) -> None:
        if self.columns is None:
            self.columns = tuple(sample)
            self._clear()
        if sample.keys() != self._rows.keys():
            raise InputError(
                f"{where}: a sample has the columns {', '.join(sample)}, the first {', '.join(self.columns)}"
            )
        for column, values in sample.items():
            row = _whole_numbers(values, column, where)
            self._rows[column].append(row)
            self._held += len(row)
        self._sizes.append(size)
        self._where.append(np.frombuffer(where.encode("utf-8", "surrogateescape"), np.uint8))
        if self._held >= SHARD_VALUES:
            self._flush()

    def _flush(self) -> None:
        number = len(self.shards)
        files: dict[str, int] = {}
        for column, rows in (*self._rows.items(), (_WHERE, self._where)):
            offsets = np.zeros(len(rows) + 1, np.int64)
            np.cumsum([len(row) for row in rows], out=offsets[1:])
            files |= self._save(f"{number:05d}.{column}.npy", np.concatenate(rows))
            files |= self._save(f"{number:05d}.{column}.offsets.npy", offsets)
        files |= self._save(f"{number:05d}.{_SIZES}.npy", np.array(self._sizes, np.int32))
        self.shards.append({"samples": len(self._sizes), "files": files})
        self.samples, self.tokens = self.samples + len(self._sizes), self.tokens + sum(self._sizes)
        self._clear()

    def _save(self, name: str, values: NDArray[Any]) -> dict[str, int]:
        with (self.folder / name).open("wb") as file:
            np.save(file, values, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
            return {name: file.tell()}

    def finish(self, fingerprint: Fingerprint, counts: Mapping[str, int], bad: Mapping[str, str]) -> None:
        if self._sizes:
            self._flush()
        if not self.samples:
            left = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
            raise InputError(f"there is no sample to train on ({left})")
        index = {
            "fingerprint": fingerprint,
            "columns": list(self.columns or ()),
            "counts": {**counts, "samples": self.samples, "tokens": self.tokens},
            "bad": dict(bad),
            "shards": self.shards,
        }
        write_json(self.folder / INDEX, index)


def _whole_numbers(values: NDArray[Any], column: str, where: str) -> NDArray[np.int32]:
    row = np.asarray(values)
    if row.dtype == np.int32 and row.ndim == 1:
        return row
    whole = row.ndim == 1 and (np.issubdtype(row.dtype, np.integer) or not row.size)
    if not whole or (row.size and (row.min() < _INT32.min or row.max() > _INT32.max)):
        raise InputError(f"{where}: column {column!r} must be a row of whole numbers of 32 bits, got {row!r:.80}")
    return row.astype(np.int32)


def _replace(folder: Path, aside: Path) -> None:
    """`aside` becomes `folder`; what was there goes."""
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    if folder.exists():
        folder.replace(old)
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    if sys.platform != "win32":  # a renaming is on the disk when its folder is
        parent = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def _index(folder: Path) -> dict[str, Any]:
    index = read_json(folder / INDEX)
    kinds = {"fingerprint": dict, "columns": list, "counts": dict, "bad": dict, "shards": list}
    for key, kind in kinds.items():
        if not isinstance(index.get(key), kind):
            raise CorruptFile(f"{folder / INDEX}: {key!r} is not there, or of the wrong kind{_ANEW}")
    return index


def _load(folder: Path, name: str, said: Mapping[str, int]) -> NDArray[Any]:
    path = folder / name
    try:
        size = path.stat().st_size
        if size != said.get(name):
            raise CorruptFile(f"{path} has {size:,} bytes, and {said.get(name)} were written{_ANEW}")
        values: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise NotFound(f"{path} is gone{_ANEW}") from None
    except (ValueError, EOFError) as error:
        raise CorruptFile(f"{path}: {error}{_ANEW}") from error
    return values.view(np.ndarray)  # a plain view: slicing numpy's memmap class takes ten times as long
