"""Samples come back from disk as they went there; half a folder is never taken for a whole one."""

import errno
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import CorruptFile, InputError, NotFound
from qkv.train import shards as module
from qkv.train.records import Bad, Placed
from qkv.train.shards import Shards, build, open_shards

PRINT = {"files": {"a.txt": "12"}, "length": None}


def encode(record):
    if "bad" in record:
        raise InputError("it is bad")
    return [{"ids": np.array(ids, np.int32), "more": np.array([len(ids), *ids])} for ids in record["texts"]]


def size(sample):
    return len(sample["ids"])


def made(folder: Path, texts, fingerprint=PRINT, **options) -> Shards:
    placed = [Placed({"texts": several}, f"ä.txt:{i + 1}") for i, several in enumerate(texts)]
    return build(placed, encode, folder, fingerprint, **{"size": size, "bad": Bad(), **options})


TEXTS = [[[1, 2, 3]], [[4], []], [], [[5, 2**31 - 1, -(2**31)]]]
FLAT = [[1, 2, 3], [4], [], [5, 2**31 - 1, -(2**31)]]


@pytest.mark.parametrize("values", [1, 5, 1 << 24])
def test_there_and_back(tmp_path, monkeypatch, values) -> None:
    monkeypatch.setattr(module, "SHARD_VALUES", values)
    built = made(tmp_path / "deep" / "s", TEXTS, counts=lambda: {"cut": 2})
    for shards in (built, open_shards(tmp_path / "deep" / "s"), pickle.loads(pickle.dumps(built))):
        assert len(shards) == 4
        assert [sample["ids"].tolist() for sample in shards] == FLAT
        assert [sample["more"].tolist() for sample in shards] == [[len(ids), *ids] for ids in FLAT]
        assert {sample[column].dtype for sample in shards for column in ("ids", "more")} == {np.dtype(np.int32)}
        assert shards.sizes.tolist() == [3, 1, 0, 3]
        assert [shards.where(i) for i in range(4)] == ["ä.txt:1", "ä.txt:2", "ä.txt:2", "ä.txt:4"]
        assert shards.counts == {"records": 4, "samples": 4, "tokens": 7, "bad": 0, "cut": 2}
        assert shards.fingerprint == PRINT
        with pytest.raises(IndexError, match=r"sample 4 of 4"):
            shards[4]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["s"]


def test_a_part_of_a_sample(tmp_path) -> None:
    texts = lambda record: [{"ids": np.array(ids, np.int32), "twice": np.array(ids) * 2} for ids in record["texts"]]  # noqa: E731
    shards = build([Placed({"texts": [[1, 2, 3], [4]]}, "x:1")], texts, tmp_path / "s", PRINT, size=size, bad=Bad())
    part = shards.cut(0, 1, 3)
    assert {column: values.tolist() for column, values in part.items()} == {"ids": [2, 3], "twice": [4, 6]}
    part["ids"][:] = 0  # a copy
    assert shards[0]["ids"].tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"'more' has 4 values for 3 tokens: such samples can't be packed"):
        made(tmp_path / "t", [[[1, 2, 3]]]).cut(0, 0, 1)


@settings(max_examples=15)  # each of them syncs its files
@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), min_size=1, max_size=30), st.integers(1, 40))
def test_any_samples(tmp_path_factory, texts, values) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_VALUES", values)
        shards = made(tmp_path_factory.mktemp("any") / "s", [texts])
    assert [sample["ids"].tolist() for sample in shards] == texts


def test_who_asks_may_write(tmp_path) -> None:
    shards = made(tmp_path / "s", TEXTS)
    shards[0]["ids"][:] = 0
    assert shards[0]["ids"].tolist() == [1, 2, 3]


def test_made_once_for_a_fingerprint(tmp_path) -> None:
    made(tmp_path / "s", TEXTS)
    inode = (tmp_path / "s").stat().st_ino

    def never():
        raise AssertionError
        yield

    again = build(never(), encode, tmp_path / "s", PRINT, size=size, bad=Bad())
    assert len(again) == 4
    assert (tmp_path / "s").stat().st_ino == inode
    other = made(tmp_path / "s", [[[7, 7]]], {**PRINT, "length": 2})
    assert [sample["ids"].tolist() for sample in other] == [[7, 7]]
    assert again[0]["ids"].tolist() == [1, 2, 3]  # what another process has mapped stays as it was
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_breaks_off_leaves_nothing(tmp_path) -> None:
    made(tmp_path / "s", TEXTS)

    def full():
        yield Placed({"texts": [[1]]}, "a:1")
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match=r"no space"):
        build(full(), encode, tmp_path / "s", {"other": 1}, size=size, bad=Bad())
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert len(open_shards(tmp_path / "s")) == 4


def test_bad_records(tmp_path, capsys) -> None:
    placed = [Placed({"texts": [[i]]}, f"a:{i}") if i % 3 else Placed({"bad": 1}, f"a:{i}") for i in range(7)]
    shards = build(placed, encode, tmp_path / "s", PRINT, size=size, bad=Bad(3))
    assert [sample["ids"].tolist() for sample in shards] == [[1], [2], [4], [5]]
    assert shards.counts["bad"] == 3
    assert shards.counts["records"] == len(placed) - 3  # those that are learned from
    assert capsys.readouterr().err.splitlines()[1] == "skipped a:3: it is bad (2 of at most 3)"
    with pytest.raises(InputError, match=r"^a:6: it is bad .*bad record number 3; data.skip_bad is 2"):
        build(placed, encode, tmp_path / "t", PRINT, size=size, bad=Bad(2))
    assert not (tmp_path / "t").exists()


def test_bad_records_of_samples_that_are_there(tmp_path, capsys) -> None:
    placed = [Placed({"texts": [[1]]}, "a:1"), Placed({"bad": 1}, "a:2"), Placed({"bad": 1}, "a:3")]
    first = build(placed, encode, tmp_path / "s", PRINT, size=size, bad=Bad(2))
    said = capsys.readouterr().err
    assert first.bad == {"a:2": "it is bad", "a:3": "it is bad"}
    build((), encode, tmp_path / "s", PRINT, size=size, bad=Bad(2))
    assert capsys.readouterr().err == said
    with pytest.raises(InputError, match=r"^a:3: it is bad .*bad record number 2; data.skip_bad is 1"):
        build((), encode, tmp_path / "s", PRINT, size=size, bad=Bad(1))


def test_no_sample_is_an_error(tmp_path) -> None:
    with pytest.raises(InputError, match=r"there is no sample to train on \(2 records, 2 dropped\)"):
        made(tmp_path / "s", [[], []], counts=lambda: {"dropped": 2})


@pytest.mark.parametrize(
    "sample",
    [
        {"ids": np.array([1.5])},
        {"ids": np.array([[1]])},
        {"ids": np.array([2**31])},
        {"ids": np.array(["a"])},
    ],
)
def test_only_rows_of_whole_numbers(tmp_path, sample) -> None:
    with pytest.raises(InputError, match=r"a:1: column 'ids' must be a row of whole numbers"):
        build([Placed({}, "a:1")], lambda _: [sample], tmp_path / "s", PRINT, size=size, bad=Bad())


def test_all_samples_have_the_same_columns(tmp_path) -> None:
    samples = [{"ids": np.array([1])}, {"ids": np.array([1]), "kinds": np.array([1])}]
    with pytest.raises(InputError, match=r"a:1: a sample has the columns ids, kinds, the first ids"):
        build([Placed({}, "a:1")], lambda _: samples, tmp_path / "s", PRINT, size=size, bad=Bad())


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_gone_or_cut_is_named(tmp_path) -> None:
    names = files(made(tmp_path / "s", TEXTS).folder)
    assert len(names) == 8
    for name in set(names) - {"index.json"}:
        path = tmp_path / "s" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(CorruptFile, match=rf"{name} has {len(whole) - 1} bytes, and {len(whole)} were written"):
            open_shards(tmp_path / "s")
        path.unlink()
        with pytest.raises(NotFound, match=f"{name} is gone: delete the folder"):
            made(tmp_path / "s", TEXTS)
        path.write_bytes(b"x" * len(whole))
        with pytest.raises(CorruptFile, match=name):
            open_shards(tmp_path / "s")
        path.write_bytes(whole)
    offsets = tmp_path / "s" / "00000.ids.offsets.npy"
    np.save(offsets, np.load(offsets) + 1)
    with pytest.raises(CorruptFile, match=r"00000.ids.npy doesn't fit its offsets"):
        open_shards(tmp_path / "s")
    index = tmp_path / "s" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "shards": 3}))
    with pytest.raises(CorruptFile, match=r"index.json: 'shards'"):
        open_shards(tmp_path / "s")
    with pytest.raises(NotFound):
        open_shards(tmp_path / "t")


def test_pickles_are_not_read(tmp_path) -> None:
    made(tmp_path / "s", TEXTS)
    path = tmp_path / "s" / "00000.ids.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    index = json.loads((tmp_path / "s" / "index.json").read_text())
    index["shards"][0]["files"][path.name] = path.stat().st_size
    (tmp_path / "s" / "index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match=r"00000.ids.npy"):
        open_shards(tmp_path / "s")


def test_a_terminal_sees_how_far_it_is(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "SHOW_EVERY", -1)
    made(tmp_path / "s", TEXTS)
    assert "tokenizing: 4 records" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    made(tmp_path / "t", TEXTS)
    assert capsys.readouterr().err == ""
