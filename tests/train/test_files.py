"""Packed files and archives give what is in them, and what is broken is named."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from qkv.errors import CorruptFile, InputError, NotFound, UnsafeFile
from qkv.train import files
from qkv.train.files import named_errors, numbered_lines, opened_files

TEXT = "one\ntwo ä\r\n\nlast".encode()


def read(path, member=""):
    found = {}
    for name, opened in opened_files(path, member):
        with named_errors(name):
            found[name] = opened.read()
    return found


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)]
)
def test_packed(tmp_path, suffix, pack) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(TEXT))
    assert read(path) == {str(path): TEXT}
    if suffix:
        path.write_bytes(pack(TEXT * 99)[:-9])
        with pytest.raises(CorruptFile, match=r"a.txt.*damaged, or it breaks off"):
            read(path)
        path.write_bytes(b"no such thing, and long enough")
        with pytest.raises(CorruptFile, match=r"a.txt"):
            read(path)


def test_zip_members(tmp_path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("neg")
        for name in ("neg/b.txt", "neg/a.txt", "pos/c.txt"):
            archive.writestr(name, name)
        archive.writestr("d.txt.gz", gzip.compress(TEXT))
    assert list(read(path, "neg/*.txt").items()) == [(f"{path}!neg/{x}.txt", f"neg/{x}.txt".encode()) for x in "ab"]
    assert read(path, "d.txt.gz") == {f"{path}!d.txt.gz": TEXT}
    with pytest.raises(NotFound, match=r"no file in it is named 'e.txt'"):
        read(path, "e.txt")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(CorruptFile, match=r"a.zip"):
        read(path, "*")
    at = whole.index(b"neg/a.txt") + 12
    path.write_bytes(whole[:at] + b"????" + whole[at + 4 :])
    with pytest.raises(CorruptFile, match=r"a.zip"):
        read(path, "*")
    path.write_bytes(whole.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"))
    with pytest.raises(CorruptFile, match=r"is encrypted"):
        read(path, "*")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.tar", ""), ("a.tar.gz", "gz"), ("a.tar.xz", "xz"), ("a.tgz", "gz"), ("A.TBZ2", "bz2"), ("a.txz", "xz")],
)
def test_tar_members_in_their_order(tmp_path, name, kind) -> None:
    path = tmp_path / name
    with tarfile.open(path, f"w:{kind}") as archive:
        for member in ("b.txt", "a.txt"):
            info = tarfile.TarInfo(member)
            info.size = len(TEXT)
            archive.addfile(info, io.BytesIO(TEXT))
    assert list(read(path, "*.txt").items()) == [(f"{path}!b.txt", TEXT), (f"{path}!a.txt", TEXT)]
    with pytest.raises(NotFound, match=r"no file in it"):
        read(path, "c.txt")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptFile, match=name):
        read(path, "*")


def test_archives_are_known_by_what_they_are(tmp_path) -> None:
    for name, make in (("a.data", tarfile.open), ("b.data", zipfile.ZipFile)):
        (tmp_path / "x.txt").write_bytes(TEXT)
        with make(tmp_path / name, "w") as archive:
            getattr(archive, "add" if make is tarfile.open else "write")(tmp_path / "x.txt", "x.txt")
        assert read(tmp_path / name, "x.*") == {f"{tmp_path / name}!x.txt": TEXT}
    with pytest.raises(InputError, match=r"x.txt is no archive .* leave !y out"):
        read(tmp_path / "x.txt", "y")
    with pytest.raises(NotFound, match=r"z.zip is not there"):
        read(tmp_path / "z.zip", "y")


@pytest.mark.parametrize("name", ["p.zip", "p.tgz", "p.tar.gz", "p.TAR"])
def test_an_archive_needs_names_of_members(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(InputError, match=rf"is an archive: name its members, as in {name}!\*.jsonl"):
        read(tmp_path / name)


def test_links_in_a_tar_are_not_followed(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.txt")
        archive.addfile(info)
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "a.txt"
        archive.addfile(link)
    with pytest.raises(UnsafeFile, match=r"b.txt is a link"):
        read(tmp_path / "a.tar", "*.txt")


def test_not_there(tmp_path) -> None:
    with pytest.raises(NotFound, match=r"x.txt is not there"):
        read(tmp_path / "x.txt")
    with pytest.raises(NotFound, match=r"is a folder: name its files"):
        read(tmp_path)


def test_lines(monkeypatch) -> None:
    lines = list(numbered_lines(io.BytesIO(b"\xef\xbb\xbf" + TEXT), "a"))
    assert lines == [(1, b"one"), (2, "two ä".encode()), (3, b""), (4, b"last")]
    monkeypatch.setattr(files, "MAX_RECORD", 1 << 20)
    with pytest.raises(CorruptFile, match=r"a:2: a line of more than 1 MB"):
        list(numbered_lines(io.BytesIO(b"\n" + bytes(2 << 20)), "a"))
