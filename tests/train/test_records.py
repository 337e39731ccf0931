"""Records by the objective's names, the same parts each time, and nothing passed over without a word."""

import gzip
import json
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import ConfigError, CorruptFile, InputError, NotFound
from qkv.train.recipe import Data, File, HoldOut
from qkv.train.records import Bad, hub_name, part, read, sources, unheard


def lines(path: Path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def taken(root: Path, wanted=("text",), optional=(), bad=0, files=None, **options):
    data = Data(train=files or options.pop("train"), **options) if files is None else Data(train=files, **options)
    return list(read(data.train, data, root, wanted, Bad(bad), optional))


def plain(placed):
    return [one.record for one in placed]


def test_by_the_objectives_names(tmp_path) -> None:
    lines(tmp_path / "a.jsonl", [{"review": "good", "stars": 5, "x": 1}, {"review": "bad", "stars": None}])
    placed = taken(tmp_path, ("text",), ("label",), train="a.jsonl", fields={"text": "review", "label": "stars"})
    assert plain(placed) == [{"text": "good", "label": 5}, {"text": "bad"}]
    assert [one.where for one in placed] == [f"{tmp_path}/a.jsonl:{i}" for i in (1, 2)]


def test_columns_by_number(tmp_path) -> None:
    with gzip.open(tmp_path / "fra.txt.gz", "wt", encoding="utf-8") as file:
        file.write('Go.\tVa !\t"CC\nHi.\tSalut !\t#2\n')
    fields = {"source": 2, "target": 1}
    options = {"format": "tsv", "header": False, "fields": fields, "train": "fra.txt.gz"}
    assert plain(taken(tmp_path, ("source", "target"), **options)) == [
        {"source": "Va !", "target": "Go."},
        {"source": "Salut !", "target": "Hi."},
    ]
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert plain(taken(tmp_path, ("source", "target"), train="a.csv", fields=fields)) == [
        {"source": "2", "target": "1"}
    ]
    with pytest.raises(InputError, match=r"a.csv:2: there are 2 columns, and data.fields.source asks for number 3"):
        taken(tmp_path, ("source",), train="a.csv", fields={"source": 3})
    with pytest.raises(ConfigError, match=r"columns are counted from 1"):
        taken(tmp_path, ("source",), train="a.csv", fields={"source": 0})
    with pytest.raises(ConfigError, match=r"which jsonl records don't have"):
        taken(tmp_path, ("source",), train="a.csv", format="jsonl", fields={"source": 1})
    (tmp_path / "a.conll").write_text("EU NNP B-ORG\n")
    placed = taken(tmp_path, ("words", "tags"), train="a.conll", fields={"tags": 2})
    assert plain(placed) == [{"words": ["EU"], "tags": ["NNP"]}]


def test_set_and_patterns_and_members(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "rt.zip", "w") as archive:
        archive.writestr("rt/polarity.neg", "dull\nlong\n")
        archive.writestr("rt/polarity.pos", "fine\n")
    files = tuple(File(path=f"rt.zip!rt/*.{x}", set={"label": x}) for x in ("neg", "pos"))
    placed = taken(tmp_path, ("text", "label"), train=files, format="text")
    assert plain(placed) == [{"text": t, "label": l} for t, l in (("dull", "neg"), ("long", "neg"), ("fine", "pos"))]
    assert placed[1].where == f"{tmp_path}/rt.zip!rt/polarity.neg:2"
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    assert [one["text"] for one in plain(taken(tmp_path, train=("*.txt",)))] == ["a.txt", "b.txt"]
    assert len(taken(tmp_path, train=("**/*.txt",))) == 3
    assert len(taken(tmp_path, train=(str(tmp_path / "*.txt"), "deep/c.txt"))) == 3
    (tmp_path / "[x].txt").write_text("x\n")
    assert plain(taken(tmp_path, train="[x].txt")) == [{"text": "x"}]
    assert len(taken(tmp_path / "deep", train="*.txt")) == 1


def test_set_wins(tmp_path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": "t", "label": "file's"}])
    file = File(path="a.jsonl", set={"label": "mine"})
    assert plain(taken(tmp_path, ("text", "label"), train=file)) == [{"text": "t", "label": "mine"}]


def test_not_there_is_said_before_anything_is_read(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    for name in ("b.txt", "*.tsv", "b.zip!x"):
        data = Data(train=("a.txt", name))
        with pytest.raises(NotFound, match=r"names are relative to"):
            read(data.train, data, tmp_path, ("text",), Bad())
    with pytest.raises(NotFound, match=r"a.txt is not there|is a folder"):
        taken(tmp_path, train=".", format="text")


def test_names_that_the_objective_does_not_read(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(ConfigError, match=r"names 'txt'; the objective reads text, label"):
        taken(tmp_path, ("text",), ("label",), train="a.txt", fields={"txt": "text"})
    with pytest.raises(ConfigError, match=r"names 'lable'"):
        taken(tmp_path, ("text",), ("label",), train=File(path="a.txt", set={"lable": 1}))


def test_bad_records(tmp_path, capsys) -> None:
    lines(tmp_path / "a.jsonl", [{"text": "a"}, {"txt": "b"}, {"text": None}, {"text": "d"}])
    bad = Bad(2)
    data = Data(train="a.jsonl")
    assert plain(read("a.jsonl", data, tmp_path, ("text",), bad)) == [{"text": "a"}, {"text": "d"}]
    assert bad.count == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        f"skipped {tmp_path}/a.jsonl:2: field 'text' is missing; there are txt. data.fields.text can name another "
        "(1 of at most 2)"
    )
    assert told[1] == f"skipped {tmp_path}/a.jsonl:3: field 'text' is null (2 of at most 2)"
    heard: list[str] = []
    list(read("a.jsonl", data, tmp_path, ("text",), Bad(2, heard.append)))
    assert heard == told
    with pytest.raises(InputError, match=r"a.jsonl:3: .*it is bad record number 2; data.skip_bad is 1"):
        taken(tmp_path, train="a.jsonl", bad=1)
    with pytest.raises(InputError, match=r"a.jsonl:2: field 'text' is missing; .* Mend it, or let data.skip_bad"):
        taken(tmp_path, train="a.jsonl")


def test_one_budget_for_all_files(tmp_path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(b"\xff\nx\n")
    assert len(taken(tmp_path, train="*.txt", bad=3)) == 3
    with pytest.raises(InputError, match=r"c.txt:1: not UTF-8"):
        taken(tmp_path, train="*.txt", bad=2)


def test_nothing_is_an_error(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("\n")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"no record in \*.txt, 1 bad apart: .*not UTF-8"):
        taken(tmp_path, train="*.txt", bad=1)
    (tmp_path / "c.txt").write_text("x\n")
    data = Data(train="c.txt", hold_out=HoldOut(valid=1e-9))
    with pytest.raises(InputError, match=r"no record for valid in c.txt"):
        list(part(data, "valid", tmp_path, ("text",), Bad()))


def test_a_file_that_breaks_off_is_no_bad_record(tmp_path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"line\n" * 9999)[:-12])
    with pytest.raises(CorruptFile, match=r"a.txt.gz: damaged, or it breaks off"):
        taken(tmp_path, train="a.txt.gz", bad=9)


def test_limit(tmp_path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(30)])
    data = Data(train="a.jsonl", limit=7, hold_out=HoldOut(valid=0.4))
    assert len(list(part(data, "train", tmp_path, ("text",), Bad()))) == 7
    assert len(list(part(data, "valid", tmp_path, ("text",), Bad()))) > 7


def test_limit_draws_from_all_files_in_any_order(tmp_path) -> None:
    names = {"text": "text", "label": "label"}
    for label in ("bad", "good"):
        lines(tmp_path / f"{label}.jsonl", [{"text": f"{label} {i}", "label": label} for i in range(200)])

    def drawn(limit, *files):
        found = list(part(Data(train=files, limit=limit), "train", tmp_path, tuple(names), Bad()))
        return [placed.record["text"] for placed in found]

    one, other = drawn(100, "bad.jsonl", "good.jsonl"), drawn(100, "good.jsonl", "bad.jsonl")
    assert sorted(one) == sorted(other)
    assert len(one) == 100
    assert 30 < sum(text.startswith("bad") for text in one) < 70
    assert set(drawn(20, "bad.jsonl", "good.jsonl")) < set(one)
    assert drawn(500, "bad.jsonl") == [f"bad {i}" for i in range(200)]


def test_limit_names_a_bad_record_once(tmp_path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(9)] + [{"no": 1}])
    told: list[str] = []
    data = Data(train="a.jsonl", limit=3)
    assert len(list(part(data, "train", tmp_path, ("text",), Bad(1, told.append)))) == 3
    assert len(told) == 1


def parts(root, records, hold_out, wanted=("a",), optional=("b",)):
    lines(root / "r.jsonl", records)
    data = Data(train="r.jsonl", hold_out=hold_out)
    found = {}
    for which in ("train", "valid", "test"):
        found[which] = []
        with suppress_nothing_there():
            found[which] = plain(part(data, which, root, wanted, Bad(), optional))
    return found


@contextmanager
def suppress_nothing_there():
    try:
        yield
    except InputError as error:
        if "no record for" not in str(error):
            raise


@given(st.lists(st.tuples(st.text(max_size=4), st.integers(0, 9)), min_size=1, max_size=40), st.randoms())
def test_hold_out(tmp_path_factory, table, chance) -> None:
    """Each record once; those that agree in the field together, wherever they stand."""
    root = tmp_path_factory.mktemp("held")
    records = [{"a": a, "b": b} for a, b in table]
    held = HoldOut(valid=0.3, test=0.3, by="a")
    found = parts(root, records, held)
    assert sorted(map(repr, [r for part in found.values() for r in part])) == sorted(map(repr, records))
    for one, two in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {r["a"] for r in found[one]} & {r["a"] for r in found[two]}
    chance.shuffle(records)
    again = parts(root, records, held)
    assert {k: sorted(map(repr, v)) for k, v in again.items()} == {k: sorted(map(repr, v)) for k, v in found.items()}


def test_hold_out_shares(tmp_path) -> None:
    found = parts(tmp_path, [{"a": f"text {i}"} for i in range(2000)], HoldOut(valid=0.1, test=0.2))
    assert [round(len(found[which]) / 2000, 1) for which in ("train", "valid", "test")] == [0.7, 0.1, 0.2]
    more = parts(tmp_path, [{"a": f"text {i}"} for i in range(2000)], HoldOut(valid=0.2, test=0.2))
    names = lambda part: {record["a"] for record in part}  # noqa: E731
    assert names(found["valid"]) < names(more["valid"])


def test_hold_out_by_a_field_that_the_objective_does_not_read(tmp_path) -> None:
    records = [{"a": f"{i}", "group": f"{i % 20}"} for i in range(400)]
    found = parts(tmp_path, records, HoldOut(valid=0.5, test=0.1, by="group"))
    groups = [{int(record["a"]) % 20 for record in found[which]} for which in ("train", "valid")]
    assert not groups[0] & groups[1]
    with pytest.raises(InputError, match=r"r.jsonl:1: data.hold_out.by is 'grup', .* it has a, group"):
        parts(tmp_path, records, HoldOut(valid=0.5, test=0.1, by="grup"))


def test_hold_out_stays_what_it_is(tmp_path) -> None:
    """The hash is part of what a recipe says: another one would move test records into training."""
    found = parts(tmp_path, [{"a": str(i)} for i in range(20)], HoldOut(valid=0.2, test=0.2, by="a"))
    assert [[int(r["a"]) for r in found[which]] for which in ("valid", "test")] == [
        [8, 9],
        [0, 3, 4, 10, 11, 13, 17, 18],
    ]


def test_parts_are_said_once(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "v.txt").write_text("v\n")
    data = Data(train="a.txt", valid="v.txt", hold_out=HoldOut(valid=0.1))
    with pytest.raises(ConfigError, match=r"data.valid names files and data.hold_out.valid a share"):
        part(data, "valid", tmp_path, ("text",), Bad())
    with pytest.raises(ConfigError, match=r"there are no test records: name files in data.test, or a share"):
        part(Data(train="a.txt"), "test", tmp_path, ("text",), Bad())
    data = Data(train="a.txt", valid="v.txt", hold_out=HoldOut(test=0.1))
    assert plain(part(data, "valid", tmp_path, ("text",), Bad())) == [{"text": "v"}]


def test_hub(tmp_path) -> None:
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    rows = {"sentence": ["good", "bad", "what?"], "label": [1, 0, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    data = Data(train=f"{folder}:train", format="hub", fields={"text": "sentence"})
    placed = list(part(data, "train", tmp_path, ("text",), Bad(), ("label",)))
    assert plain(placed) == [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}, {"text": "what?"}]
    assert placed[1].where == f"{folder}:train[#2]"
    with pytest.raises(NotFound, match=r"set:test"):
        taken(tmp_path, train=f"{folder}:test", format="hub")
    with pytest.raises(ConfigError, match='is named "org/name:split"'):
        taken(tmp_path, train="org/name", format="hub")


def test_hub_names() -> None:
    assert hub_name("/a/b:c/train") == ("/a/b", None, "c", "train")
    assert hub_name("org/name:train") == ("org/name", None, None, "train")
    assert hub_name("org/name@abc:plain/train[:10%]") == ("org/name", "abc", "plain", "train[:10%]")


def test_the_hubs_answers(tmp_path) -> None:
    lines(tmp_path / "a.jsonl", [{"answers": {"text": ["x", "y"], "answer_start": [1, 2]}}, {"answers": []}])
    placed = taken(tmp_path, ("answers",), train="a.jsonl")
    assert plain(placed) == [{"answers": [{"text": "x", "start": 1}, {"text": "y", "start": 2}]}, {"answers": []}]


def test_sources(tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    (found,) = sources(File(path="a.zip!x/*", set={"a": 1}), Data(train="x"), tmp_path)
    assert (found.file, found.member, found.set) == (tmp_path / "a.zip", "x/*", {"a": 1})


def test_a_place_is_bad_once() -> None:
    told: list[str] = []
    bad = Bad(1, told.append)
    assert (bad.count, bad.first) == (0, "")
    for why in ("no text", "no label"):
        bad.report("a:1", why)
    assert (bad.count, bad.first, told) == (1, "a:1: no text", ["skipped a:1: no text (1 of at most 1)"])
    for _ in "ab":
        with pytest.raises(InputError, match=r"^a:2: no text \(and it is bad record number 2; data.skip_bad is 1\)"):
            bad.report("a:2", "no text")


def test_parts_of_one_file_count_a_bad_line_once(tmp_path, capsys) -> None:
    lines(tmp_path / "a.jsonl", [{"text": str(i)} if i != 7 else {"txt": "x"} for i in range(30)])
    data, bad = Data(train="a.jsonl", hold_out=HoldOut(valid=0.3, test=0.3)), Bad(1)
    assert sum(len(list(part(data, which, tmp_path, ("text",), bad))) for which in ("train", "valid", "test")) == 29
    assert bad.count == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len(list(part(data, "train", tmp_path, ("text",), unheard()))) > 1
    assert capsys.readouterr().err == ""
