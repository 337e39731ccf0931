"""Each format's rows, where they stand, and what is wrong with those that aren't."""

import csv
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import CorruptFile, InputError
from qkv.train import formats
from qkv.train.formats import rows
from qkv.train.recipe import Data


def read(tmp_path, name, content, **options):
    """Rows and bad ones, with line numbers alone."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    bad: list[tuple[str, str]] = []
    found = list(rows(path, "", Data(train=name, **options), lambda where, why: bad.append((where, why))))
    assert all(where.startswith(str(path)) for where, _ in [*found, *bad])
    short = lambda pairs: [(where.removeprefix(str(path)).strip(":"), what) for where, what in pairs]  # noqa: E731
    return short(found), short(bad)


def test_text_by_line(tmp_path) -> None:
    found, bad = read(tmp_path, "a.txt", b"one\n\n two\r\n\xffx\nthree")
    assert found == [("1", {"text": "one"}), ("3", {"text": " two"}), ("5", {"text": "three"})]
    assert bad == [("4", "not UTF-8 (byte 1 of the line)")]


def test_text_by_paragraph(tmp_path) -> None:
    found, bad = read(tmp_path, "a.txt", b"\n\na\nb\n \nc\n\nd\n\xff\ne\n\nf", document="paragraph")
    assert found == [("3", {"text": "a\nb"}), ("6", {"text": "c"}), ("12", {"text": "f"})]
    assert bad == [("9", "not UTF-8 (byte 1 of the line)")]


def test_text_by_file(tmp_path, monkeypatch) -> None:
    text = "\n a\r\n\nb \n"
    assert read(tmp_path, "a.txt", text, document="file") == ([("1", {"text": text})], [])
    assert read(tmp_path, "b.txt", b"a\nb\xff", document="file")[1] == [("2", "not UTF-8 (byte 4 of the file)")]
    assert read(tmp_path, "c.txt", "\n \n", document="file") == ([], [])
    monkeypatch.setattr(formats, "MAX_RECORD", 5)
    with pytest.raises(CorruptFile, match="too long for one record"):
        read(tmp_path, "d.txt", text, document="file")


def test_jsonl(tmp_path) -> None:
    lines = b'{"a": 1}\n\n{"a": [{"b": "\xc3\xa4"}]}\n[1]\n{"a": NaN}\n{"a": 1, "a": 2}\n{"a"\n\xff\n'
    found, bad = read(tmp_path, "a.jsonl", lines)
    assert found == [("1", {"a": 1}), ("3", {"a": [{"b": "ä"}]})]
    assert [where for where, _ in bad] == ["4", "5", "6", "7", "8"]
    assert [why.split(": ")[1][:10] for _, why in bad] == [
        "must be a ",
        "not valid ",
        "not valid ",
        "not valid ",
        "not UTF-8 ",
    ]


def test_csv(tmp_path) -> None:
    text = 'a,b\n1,"x, ""y""\nz"\n2\n\n3,ä\n4,"u"v\n5,6\n'
    found, bad = read(tmp_path, "a.csv", b"\xef\xbb\xbf" + text.encode())
    assert found == [("2", {"a": "1", "b": 'x, "y"\nz'}), ("6", {"a": "3", "b": "ä"}), ("8", {"a": "5", "b": "6"})]
    assert [where for where, _ in bad] == ["4", "7"]
    assert bad[0][1] == "1 columns, and the header names 2"
    assert "not CSV" in bad[1][1]
    assert read(tmp_path, "b.csv", "1,2\n3\n", header=False)[0] == [("1", {"1": "1", "2": "2"}), ("2", {"1": "3"})]
    assert read(tmp_path, "c.csv", b"a,b\n1,\xff\n")[1] == [("2", "not UTF-8")]
    assert read(tmp_path, "d.csv", 'a,b\n1,"2\n3,4\n')[1] == [("2", "not CSV: unexpected end of data")]
    with pytest.raises(InputError, match="two columns have the same name: a, a"):
        read(tmp_path, "e.csv", "a,a\n1,2\n")
    assert len(read(tmp_path, "f.csv", f"a\n{'x' * 200_000}\n")[0]) == 1


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_csv_as_python_writes_it(tmp_path_factory, table) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("x", "y"), *table])
    found = list(rows(path, "", Data(train="a.csv"), lambda where, why: pytest.fail(f"{where}: {why}")))
    assert [row for _, row in found] == [{"x": x, "y": y} for x, y in table]


def test_tsv_has_no_quotes(tmp_path) -> None:
    found, _ = read(tmp_path, "a.tsv", 'Say "no"\tDis "non\n"x\ty"\n\nz\n', header=False)
    assert found[0] == ("1", {"1": 'Say "no"', "2": 'Dis "non'})
    assert found[1] == ("2", {"1": '"x', "2": 'y"'})
    assert [where for where, _ in found] == ["1", "2", "4"]
    assert read(tmp_path, "b.tsv", "a\tb\n1\t2\n3\n") == (
        [("2", {"a": "1", "b": "2"})],
        [("3", "1 columns, and the header names 2")],
    )


def test_parquet(tmp_path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": [f"t{i}" for i in range(2000)], "tags": [["a", "b"]] * 2000, "no": [None] * 2000})
    parquet.write_table(table, tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    found, _ = read(tmp_path, "a.parquet", whole)
    assert len(found) == 2000
    assert found[1500] == ("[#1501]", {"text": "t1500", "tags": ["a", "b"], "no": None})
    with pytest.raises(CorruptFile, match=r"b.parquet: not a whole parquet file"):
        read(tmp_path, "b.parquet", whole[:-100])


def test_conll(tmp_path) -> None:
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nGerman JJ B-MISC\n"
    found, bad = read(tmp_path, "a.conll", text)
    assert found == [
        ("3", {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        ("7", {"words": ["German"], "tags": ["B-MISC"]}),
    ]
    assert not bad
    chosen, _ = read(tmp_path, "b.conll", text, fields={"tags": 2})
    assert chosen[0][1]["tags"] == ["NNP", "VBZ"]


def test_conll_between_tabs(tmp_path) -> None:
    """A no-break space is part of its word, a "#" a word, and a line of white space a blank one."""
    found, bad = read(tmp_path, "a.conll", "a\u00a0b\tO\n#\tB-x\n\t\nc\tO\nd\n\nO\te\n")
    assert [row["words"] for _, row in found] == [["a\u00a0b", "#"], ["O"]]
    assert [where for where, _ in bad] == ["5"]
    assert "'d'" in bad[0][1]


def squad(**more):
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "Jo", "answer_start": 3}], **more}
    return {"version": "x", "data": [{"title": "T", "paragraphs": [{"context": "Is Jo", "qas": [asked]}]}]}


def test_squad(tmp_path) -> None:
    row = {"id": "1", "title": "T", "question": "Who?", "context": "Is Jo", "answers": [{"text": "Jo", "start": 3}]}
    assert read(tmp_path, "a.json", json.dumps(squad())) == ([("[#1]", {**row, "impossible": False})], [])
    two = squad(is_impossible=True, answers=[], plausible_answers=[{"text": "Jo", "answer_start": 3}])
    assert read(tmp_path, "b.json", json.dumps(two))[0] == [("[#1]", {**row, "answers": [], "impossible": True})]
    bad = read(tmp_path, "c.json", json.dumps(squad(answers=[{"text": "Jo"}])))[1]
    assert bad == [("[#1]", "not a question as SQuAD has it: KeyError('answer_start')")]


@pytest.mark.parametrize("content", ["[1]", '{"data": 3}', '{"data": [{"title": "x"}]}', '{"data"', '{"data": [3]}'])
def test_not_squad(tmp_path, content) -> None:
    with pytest.raises(CorruptFile, match=r"a.json"):
        read(tmp_path, "a.json", content)


@pytest.mark.parametrize("name", ["rt.neg", "a", "a.bin.gz", "a.gz"])
def test_a_name_that_says_nothing(tmp_path, name) -> None:
    if not name.endswith(".gz"):
        assert read(tmp_path, name, "one\n", format="text")[0] == [("1", {"text": "one"})]
    content = gzip.compress(b"one\n") if name.endswith(".gz") else b"one\n"
    with pytest.raises(InputError, match=r"set data.format to one of conll, csv, .* hub"):
        read(tmp_path, name, content)
    assert read(tmp_path, name, content, format="text")[0] == [("1", {"text": "one"})]


@pytest.mark.parametrize("suffix", ["txt", "TXT", "md", "txt.gz"])
def test_a_name_that_says_it(tmp_path, suffix) -> None:
    content = gzip.compress(b"one\n") if suffix.endswith(".gz") else b"one\n"
    assert read(tmp_path, f"a.b.{suffix}", content)[0] == [("1", {"text": "one"})]
