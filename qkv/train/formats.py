"""Files of records, in the forms that data sets come in: each gives mappings of fields, and says where each stood.

A text is UTF-8, strictly; a byte-order mark in front is dropped.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from qkv.errors import CorruptFile, InputError
from qkv.strict_json import parse_json
from qkv.train import recipe
from qkv.train.files import MAX_RECORD, UNPACK, named_errors, numbered_lines, opened_files

MAX_JSON = 1 << 30  # bytes of a SQuAD file; the largest published is 42 MB

Row = tuple[str, dict[str, Any]]  # where it stands, and its fields by the file's names
OnBad = Callable[[str, str], None]  # where, and what is wrong: a record that can't be read is told and passed over
Reader = Callable[[IO[bytes], str, recipe.Data, OnBad], Iterator[Row]]

_SUFFIX = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".json": "squad",
}


def rows(file: Path, member: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    """The rows of a file, or of an archive's members whose names match the pattern `member` ("": it is no archive).

    Raises NotFound (no such member), CorruptFile (breaks off, or breaks its own format), InputError (a format that
    can't be told by its name)."""
    for name, opened in opened_files(file, member):
        kind = _kind(name) if data.format == "auto" else data.format
        with named_errors(name):
            yield from READERS[kind](opened, name, data, bad)


def _kind(name: str) -> str:
    path = PurePosixPath(name.rpartition("!")[2])
    suffix = PurePosixPath(path.stem).suffix if path.suffix.lower() in UNPACK else path.suffix
    if suffix.lower() not in _SUFFIX:
        raise InputError(
            f"{name}: what it holds can't be told from its name; set data.format to one of "
            f"{', '.join(sorted(READERS))}, hub"
        )
    return _SUFFIX[suffix.lower()]


def _decoded(file: IO[bytes], name: str, bad: OnBad) -> Iterator[tuple[int, str]]:
    for number, line in numbered_lines(file, name):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            bad(f"{name}:{number}", f"not UTF-8 (byte {error.start + 1} of the line)")


def _text(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    if data.document == "line":
        for number, line in _decoded(file, name, bad):
            if line.strip():
                yield f"{name}:{number}", {"text": line}
    elif data.document == "paragraph":
        for number, lines in _groups(file, name, bad):
            yield f"{name}:{number}", {"text": "\n".join(lines)}
    else:
        yield from _whole(file, name, bad)


def _whole(file: IO[bytes], name: str, bad: OnBad) -> Iterator[Row]:
    raw = file.read(MAX_RECORD + 1)
    if len(raw) > MAX_RECORD:
        raise CorruptFile(
            f'{name}: more than {MAX_RECORD >> 20} MB is too long for one record; document = "line" cuts it'
        )
    try:
        text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        bad(f"{name}:{raw.count(bytes([10]), 0, error.start) + 1}", f"not UTF-8 (byte {error.start + 1} of the file)")
        return
    if text.strip():
        yield f"{name}:1", {"text": text}


def _groups(file: IO[bytes], name: str, bad: OnBad) -> Iterator[tuple[int, list[str]]]:
    """Lines between blank ones, and the number of the first. One that isn't UTF-8 takes its group along."""
    first, group, whole = 1, list[str](), True
    for number, raw in numbered_lines(file, name):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            bad(f"{name}:{number}", f"not UTF-8 (byte {error.start + 1} of the line)")
            line, whole = "?", False
        if line.strip():
            first = first if group else number
            group.append(line)
            continue
        if group and whole:
            yield first, group
        group, whole = [], True
    if group and whole:
        yield first, group


def _jsonl(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    for number, line in numbered_lines(file, name):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, parse_json(line, where="this line", error=InputError)
        except InputError as error:
            bad(where, str(error))


def _csv(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    """RFC 4180: a field in quotes may hold commas and line ends."""
    texts = (line.decode("utf-8", "surrogateescape") + "\n" for _, line in numbered_lines(file, name))
    csv.field_size_limit(MAX_RECORD)  # of the process: its own 128 KiB is less than a document
    reader = csv.reader(texts, strict=True)

    def cells() -> Iterator[tuple[int, list[str]]]:
        while True:
            number = reader.line_num + 1
            try:
                yield number, next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                bad(f"{name}:{number}", f"not CSV: {error}")

    yield from _table(cells(), name, data, bad)


def _tsv(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    """Fields without tabs or line ends in them; a quote is a character like others (IANA's definition)."""
    lines = ((number, line.decode("utf-8", "surrogateescape")) for number, line in numbered_lines(file, name))
    yield from _table(((number, line.split("\t")) for number, line in lines if line), name, data, bad)


def _table(table: Iterable[tuple[int, list[str]]], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    """Rows by the header's names or, where there is none, by the columns' numbers, from 1 on."""
    names: list[str] = []
    for number, cells in table:
        where = f"{name}:{number}"
        if not cells:
            continue
        if not _unicode(cells):
            bad(where, "not UTF-8")
        elif data.header and not names:
            names = cells
            if len(set(names)) != len(names):
                raise InputError(f"{where}: two columns have the same name: {', '.join(names)}")
        elif data.header and len(cells) != len(names):
            bad(where, f"{len(cells)} columns, and the header names {len(names)}")
        else:
            yield where, dict(zip(names or map(str, range(1, len(cells) + 1)), cells, strict=True))


def _unicode(cells: list[str]) -> bool:
    """No byte that wasn't UTF-8, which decoding has kept as a lone surrogate."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{name}: parquet files need pyarrow: pip install 'qkv[train]'") from error
    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{name}[#{number}]", row
    except pyarrow.ArrowInvalid as error:
        raise CorruptFile(f"{name}: not a whole parquet file: {error}") from error


def _conll(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    """A word a line and a blank line between sentences; columns lie between tabs or, in lines without one, spaces.
    The first column is the word and the last its tag, or those that `fields` gives the numbers of."""
    word, tag = (_column(data, field, usual) for field, usual in (("words", 1), ("tags", 0)))
    for number, lines in _groups(file, name, bad):
        table = [line.split("\t") if "\t" in line else line.split(" ") for line in lines]
        table = [[cell for cell in (cell.strip() for cell in row) if cell] for row in table]
        if len(table) == 1 and table[0][0] == "-DOCSTART-":
            continue
        wrong = next(
            (i for i, row in enumerate(table) if len(row) < max(2, word, tag) or len(row) != len(table[0])), None
        )
        if wrong is None:
            yield (
                f"{name}:{number}",
                {"words": [row[word - 1] for row in table], "tags": [row[tag - 1] for row in table]},
            )
        else:
            line = f"{lines[wrong]!r:.60}"
            bad(f"{name}:{number + wrong}", f"not a word and a tag, in as many columns as the lines before: {line}")


def _column(data: recipe.Data, field: str, usual: int) -> int:
    given = data.fields.get(field, usual)
    return given if isinstance(given, int) else usual


def _squad(file: IO[bytes], name: str, data: recipe.Data, bad: OnBad) -> Iterator[Row]:
    """SQuAD v1.1 and v2.0 (arXiv 1606.05250, 1806.03822): a row is a question."""
    raw = file.read(MAX_JSON + 1)
    if len(raw) > MAX_JSON:
        raise CorruptFile(f"{name}: more than {MAX_JSON >> 30} GB of JSON")
    number = 0
    for article in _list(parse_json(raw, where=name), "data", f"{name}: not SQuAD's JSON"):
        for paragraph in _list(article, "paragraphs", f"{name}, after question {number}"):
            for question in _list(paragraph, "qas", f"{name}, after question {number}"):
                number += 1
                where = f"{name}[#{number}]"
                try:
                    yield where, _question(article, paragraph, question)
                except (KeyError, TypeError) as error:
                    bad(where, f"not a question as SQuAD has it: {error!r}")


def _list(table: Any, key: str, where: str) -> list[Any]:
    if not isinstance(table, dict) or not isinstance(table.get(key), list):
        raise CorruptFile(f'{where}: an object with a list "{key}" must stand here')
    return cast(list[Any], table[key])


def _question(article: dict[str, Any], paragraph: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": question["id"],
        "title": article.get("title", ""),
        "question": question["question"],
        "context": paragraph["context"],
        "answers": [{"text": a["text"], "start": a["answer_start"]} for a in question.get("answers", [])],
        "impossible": bool(question.get("is_impossible", False)),
    }


READERS: dict[str, Reader] = {
    "text": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "tsv": _tsv,
    "parquet": _parquet,
    "conll": _conll,
    "squad": _squad,
}
