"""Files against their hashes: what is damaged is named and set aside, what is whole is known again until it changes."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.load.verify import Expected, Marks, problems, set_aside

CONTENT = bytes(range(200))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GIT = hashlib.sha1(b"blob 200\0" + CONTENT).hexdigest()
OTHER = "0" * 64


def check(path: Path, expected: Expected) -> str | None:
    return problems(path.parent, {path.name: expected}, progress=False).get(path.name)


@pytest.mark.parametrize("expected", [Expected(), Expected(200), Expected(200, SHA256), Expected(None, GIT)])
def test_a_whole_file_has_no_problem(tmp_path: Path, expected: Expected) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    assert check(tmp_path / "x", expected) is None


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        (Expected(199, SHA256), "has 200 bytes, not 199"),
        (Expected(200, OTHER), f"has sha256 {SHA256}, not {OTHER}"),
        (Expected(None, OTHER[:40]), f"has git hash {GIT}, not {OTHER[:40]}"),
    ],
)
def test_another_file_than_expected_is_told_with_what_it_is(tmp_path: Path, expected: Expected, says: str) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    assert check(tmp_path / "x", expected) == says


@given(at=st.integers(0, 199), bits=st.integers(1, 255), digest=st.sampled_from([SHA256, GIT]))
def test_one_flipped_byte_is_found(tmp_path_factory: pytest.TempPathFactory, at: int, bits: int, digest: str) -> None:
    path = tmp_path_factory.mktemp("flip") / "x"
    path.write_bytes(CONTENT[:at] + bytes([CONTENT[at] ^ bits]) + CONTENT[at + 1 :])
    assert check(path, Expected(200, digest)) is not None


@pytest.mark.parametrize("etag", [SHA256, GIT, hashlib.sha1(CONTENT).hexdigest(), "W-some-etag"])
def test_a_links_target_stands_for_an_unknown_hash_and_a_mirror_with_other_etags_is_believed(
    tmp_path: Path, etag: str
) -> None:
    (tmp_path / etag).write_bytes(CONTENT)
    (tmp_path / "x").symlink_to(etag)
    assert check(tmp_path / "x", Expected()) is None
    (tmp_path / etag).write_bytes(CONTENT[:-1])
    assert (check(tmp_path / "x", Expected()) is None) == (etag == "W-some-etag"), "that is no hash"


def test_a_damaged_blob_is_kept_and_every_link_to_it_goes(tmp_path: Path) -> None:
    for name in ("plain", "shared"):
        (tmp_path / name).write_bytes(CONTENT)
    (tmp_path / "blob").symlink_to("shared")
    (tmp_path / "x").symlink_to("blob")
    assert set_aside(tmp_path / "plain") == tmp_path / "plain.damaged"
    assert set_aside(tmp_path / "x") == tmp_path / "shared.damaged"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.damaged", "shared.damaged"]
    assert (tmp_path / "shared.damaged").read_bytes() == CONTENT


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """Two files that have been checked, each for something else."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(CONTENT)
    made = Marks(tmp_path / "cache" / "marks.json", tmp_path)
    made.add("config", ["a"])
    made.add("weights", ["a", "b"])
    return made


def known(marks: Marks) -> list[bool]:
    return [Marks(marks.file, marks.folder).has(mode) for mode in ("config", "weights", "other")]


def test_what_was_checked_is_known_until_it_changes(marks: Marks) -> None:
    assert known(marks) == [True, True, False]
    path = marks.folder / "b"
    times = path.stat()
    path.write_bytes(CONTENT[::-1])
    assert known(marks) == [True, False, False]
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known(marks) == [True, True, False], "time, size and inode are what is looked at"
    path.with_name("c").write_bytes(CONTENT)
    path.with_name("c").replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known(marks) == [True, False, False]
    path.unlink()
    assert known(marks) == [True, False, False]


@pytest.mark.parametrize("content", ["", "[]", '{"config": 3, "weights": {}}', '{"config": {"a": null}}', '{"config"'])
def test_a_damaged_memory_means_nothing_was_checked(marks: Marks, content: str) -> None:
    marks.file.write_text(content)
    assert known(marks) == [False, False, False]
    marks.add("config", ["a"])
    assert known(marks) == [True, False, False]


def test_a_memory_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    marks = Marks(tmp_path / "file" / "marks.json", tmp_path)
    marks.add("config", ["file"])
    assert not marks.has("config")
