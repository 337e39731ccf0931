"""Records: what the files of a recipe hold, one by one, by the objective's names, each with the place it stands at."""

import glob
import heapq
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from qkv.errors import ConfigError, InputError, NotFound
from qkv.train import formats, hold_out, recipe
from qkv.train.hold_out import Part as Part

ALL = sys.maxsize
_HUB_NAME = re.compile(r"([^@]+?)(?:@([^:]+))?:(?:([^/:]+)/)?([^/:\[]+(?:\[.*\])?)")  # name, revision, config, split


@dataclass(frozen=True)
class Placed:
    """A record and where it stands: "file:line", or "file[#row]" where a file has no lines."""

    record: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Source:
    """A file, an archive's members (`member`, a pattern), or a data set of the hub (`file` is None, `name` says which),
    and the fields that its records all have."""

    name: str
    file: Path | None
    member: str
    set: Mapping[str, Any]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bad:
    """Records that can't be used: each is named, by `say`, and counted; one beyond `limit` is an InputError. A place
    counts once, however often it is read: for another part of the data, or for a tokenizer's training.

    `places`: why, by where each stands."""

    def __init__(self, limit: int = 0, say: Callable[[str], None] = _to_stderr) -> None:
        self.limit, self.say = limit, say
        self.places: dict[str, str] = {}

    @property
    def count(self) -> int:
        return len(self.places)

    @property
    def first(self) -> str:
        """The first of them: "file:line: why"; "": there is none."""
        return next((f"{where}: {why}" for where, why in self.places.items()), "")

    def report(self, where: str, why: str) -> None:
        """Tell of a bad record. InputError: it is one too many."""
        known = where in self.places
        self.places.setdefault(where, why)
        if self.count > self.limit:
            beyond = f" (and it is bad record number {self.count}; data.skip_bad is {self.limit})" if self.limit else ""
            raise InputError(f"{where}: {why}{beyond}. Mend it, or let data.skip_bad pass over so many")
        if not known:
            self.say(f"skipped {where}: {why} ({self.count} of at most {self.limit})")


def unheard() -> Bad:
    """Passes over bad records without a word, in a reading besides the one that tells of them."""
    return Bad(ALL, lambda _: None)


def part(
    data: recipe.Data, which: Part, root: Path, wanted: Sequence[str], on_bad: Bad, optional: Sequence[str] = ()
) -> Iterator[Placed]:
    """The records of a part of a recipe's data: of its own files, or those that `hold_out` keeps of the training files.

    `data.limit` leaves a sample of the training records. Arguments and errors as `read`; ConfigError: a part with files
    of its own and a share held out, or with neither."""
    held = data.hold_out.model_dump().get(which, 0.0) if data.hold_out else 0.0
    own: recipe.Files = getattr(data, which)
    if held and own != ():
        raise ConfigError(f"data.{which} names files and data.hold_out.{which} a share of data.train: say one of them")
    if own == () and not held:
        raise ConfigError(
            f"there are no {which} records: name files in data.{which}, or a share in data.hold_out.{which}"
        )
    share = which if held or which == "train" else None
    limit = data.limit if which == "train" and data.limit is not None else ALL
    return read(data.train if held else own, data, root, wanted, on_bad, optional, share=share, limit=limit)


def read(
    files: recipe.Files,
    data: recipe.Data,
    root: Path,
    wanted: Sequence[str],
    on_bad: Bad,
    optional: Sequence[str] = (),
    *,
    share: Part | None = None,
    limit: int = ALL,
) -> Iterator[Placed]:
    """The records of files, in their order: the fields `wanted`, and `optional` ones where they are there.

    root: the folder that names are relative to (`data.root` is already in it). A pattern's files come sorted by name;
    "a.zip!b*.txt" are an archive's members. `data.fields` maps the objective's names to the files' (or, of CSV, TSV
    and CoNLL, to columns' numbers, from 1 on); a file's `set` wins over what a record says. `share`: only those that
    `data.hold_out` puts there. `limit`: at most so many of them: those with the smallest hashes of all that they say,
    whatever their order and files, so that fewer are a part of more; the files are read twice then. Of the hub's data
    sets the first ones, as they may have no end.

    Raises at once NotFound (a file isn't there) and ConfigError (a mapping that can't be); while reading InputError (a
    bad record beyond `on_bad`'s limit; no record at all) and CorruptFile, all by the name of the file.
    """
    found = sources(files, data, root)
    names = {field: data.fields.get(field, field) for field in (*wanted, *optional)}
    _check(data, names, found)

    def once(bad: Bad) -> Iterator[Placed]:
        return _read(found, data, names, frozenset(wanted), bad, share)

    if limit == ALL:
        return once(on_bad)
    return islice(once(on_bad), limit) if data.format == "hub" else _sample(once, on_bad, limit)


def _sample(once: Callable[[Bad], Iterator[Placed]], on_bad: Bad, limit: int) -> Iterator[Placed]:
    """The records with the smallest hashes, in their order."""
    hashes = ((hold_out.number(hold_out.text(placed.record)), number) for number, placed in enumerate(once(unheard())))
    chosen = {number for _, number in heapq.nsmallest(limit, hashes)}
    yield from (placed for number, placed in enumerate(once(on_bad)) if number in chosen)


def sources(files: recipe.Files, data: recipe.Data, root: Path) -> list[Source]:
    """The files that a recipe names, its patterns resolved. NotFound: one is not there."""
    named = (files,) if isinstance(files, str | recipe.File) else files
    found = []
    for one in named:
        path, fixed = (one, {}) if isinstance(one, str) else (one.path, one.set)
        if data.format == "hub":
            found.append(Source(path, None, "", fixed))
            continue
        outer, _, member = path.partition("!")
        found += [Source(path, file, member, fixed) for file in _matches(root, outer)]
    return found


def _matches(root: Path, pattern: str) -> list[Path]:
    plain = root / pattern
    if plain.exists() or not glob.has_magic(pattern):
        if not plain.exists():
            raise NotFound(f"{plain} is not there; names are relative to {root.absolute()}")
        return [plain]
    anywhere = str(plain) if Path(pattern).is_absolute() else str(Path(glob.escape(str(root))) / pattern)
    found = sorted(path for path in map(Path, glob.glob(anywhere, recursive=True)) if path.is_file())
    if not found:
        raise NotFound(f"no file matches {plain}; names are relative to {root.absolute()}")
    return found


def _check(data: recipe.Data, names: Mapping[str, str | int], found: list[Source]) -> None:
    fixed = {field for source in found for field in source.set}
    unknown = sorted({*data.fields, *fixed} - {*names, *hold_out.named(data.hold_out)})
    if unknown:
        raise ConfigError(f"data.fields or set names {unknown[0]!r}; the objective reads {', '.join(names)}")
    for field, column in data.fields.items():
        if isinstance(column, int) and column < 1:
            raise ConfigError(f"data.fields.{field} is {column}: columns are counted from 1")
        if isinstance(column, int) and data.format not in ("auto", "csv", "tsv", "conll"):
            raise ConfigError(f"data.fields.{field} is a column's number, which {data.format} records don't have")


def _read(
    found: list[Source],
    data: recipe.Data,
    names: Mapping[str, str | int],
    wanted: frozenset[str],
    on_bad: Bad,
    share: Part | None,
) -> Iterator[Placed]:
    def every(bad: Bad) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        for source in found:
            for where, row in _rows(source, data, bad):
                try:
                    record = _mapped(row, names, wanted, source.set)
                except InputError as error:
                    bad.report(where, str(error))
                else:
                    yield where, record, row

    falls = None
    if share is not None and data.hold_out is not None:
        falls = hold_out.falls(data.hold_out, lambda: (each[1:] for each in every(unheard())))
    given = False
    for where, record, row in every(on_bad):
        try:
            chosen = falls is None or falls(record, row) == share
        except InputError as error:
            on_bad.report(where, str(error))
            continue
        if chosen:
            given = True
            yield Placed(record, where)
    if not given:
        what = ", ".join(dict.fromkeys(source.name for source in found)) or "no file"
        held = f" for {share}" if share and data.hold_out else ""
        raise InputError(
            f"no record{held} in {what}" + (f", {on_bad.count} bad apart: {on_bad.first}" if on_bad.count else "")
        )


def _rows(source: Source, data: recipe.Data, on_bad: Bad) -> Iterator[formats.Row]:
    if source.file is None:
        return _hub(source.name)
    return formats.rows(source.file, source.member, data, on_bad.report)


def _mapped(
    row: Mapping[str, Any], names: Mapping[str, str | int], wanted: frozenset[str], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    record = {}
    for field, name in names.items():
        if field in fixed:
            record[field] = fixed[field]
            continue
        value = row.get(name) if isinstance(name, str) else _column(row, field, name)
        if value is not None:
            record[field] = _answers(value) if field == "answers" else value
        elif field in wanted:
            state = "is null" if name in row else f"is missing; there are {', '.join(map(str, row)) or 'none'}"
            raise InputError(
                f"field {name!r} {state}" + ("" if name in row else f". data.fields.{field} can name another")
            )
    return record


def _column(row: Mapping[str, Any], field: str, number: int) -> Any:
    if field in row:  # CoNLL's, which its reader has taken by their numbers
        return row[field]
    cells = list(row.values())
    if number > len(cells):
        raise InputError(f"there are {len(cells)} columns, and data.fields.{field} asks for number {number}")
    return cells[number - 1]


def _answers(value: Any) -> Any:
    """The hub's {"text": […], "answer_start": […]} as a list of {text, start}; anything else as it is."""
    if isinstance(value, Mapping) and {"text", "answer_start"} <= value.keys():
        pairs = zip(value["text"], value["answer_start"], strict=False)
        return [{"text": text, "start": start} for text, start in pairs]
    return value


def _hub(name: str) -> Iterator[formats.Row]:
    """ "org/name:config/split", or ":split"; "org/name@revision:…". Streamed: what is used is kept in shards anyway."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"{name}: data sets of the hub need datasets: pip install 'qkv[train]'") from error
    path, revision, config, split = hub_name(name)
    try:
        stream = datasets.load_dataset(path, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError) as error:
        raise NotFound(f"{name}: {error}") from error
    features = stream.features or {}
    for number, row in enumerate(stream, 1):
        yield f"{name}[#{number}]", {key: _labelled(features.get(key), value) for key, value in row.items()}


def hub_name(name: str) -> tuple[str, str | None, str | None, str]:
    """ "org/name@revision:config/split" → path, revision, config, split. ConfigError: no split."""
    found = _HUB_NAME.fullmatch(name)
    if found is None:
        raise ConfigError(f'{name!r}: a data set of the hub is named "org/name:split" or "org/name:config/split"')
    path, revision, config, split = found.groups()
    return path, revision, config, split


def _labelled(feature: Any, value: Any) -> Any:
    """Numbers of classes as the names that the data set gives them; −1, its "not labelled", as None."""
    if hasattr(feature, "int2str") and isinstance(value, int):
        return None if value < 0 else feature.int2str(value)
    inner = getattr(feature, "feature", None)
    return [_labelled(inner, one) for one in value] if inner is not None and isinstance(value, list) else value
