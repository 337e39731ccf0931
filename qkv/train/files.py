"""Data files, open: plain, packed (.gz, .xz, .bz2), or members of an archive (.zip, .tar and its packed kinds)."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from qkv.errors import CorruptFile, InputError, NotFound, UnsafeFile

MAX_RECORD = 256 << 20  # bytes of a line, or of a file that is one record: beyond it is damage, or an unpacking bomb

_TAR = (".tar", ".tgz", ".tar.gz", ".txz", ".tar.xz", ".tbz2", ".tar.bz2")
UNPACK: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, tarfile.TarError)


def opened_files(file: Path, member: str) -> Iterator[tuple[str, IO[bytes]]]:
    """The file, or an archive's members, open: those of a .zip by name, those of a .tar in its own order."""
    if not member:
        if file.name.lower().endswith((".zip", *_TAR)) and file.is_file():
            raise InputError(f"{file} is an archive: name its members, as in {file.name}!*.jsonl")
        with named_errors(str(file)), file.open("rb") as raw, _unpacked(raw, file.name) as opened:
            yield str(file), opened
        return
    found = 0
    for name, packed in _members(file, member):
        found += 1
        with _unpacked(packed, name) as opened:
            yield f"{file}!{name}", opened
    if not found:
        raise NotFound(f"{file}: no file in it is named {member!r}")


def _members(file: Path, member: str) -> Iterator[tuple[str, IO[bytes]]]:
    name = file.name.lower()
    with named_errors(str(file)):
        if name.endswith(_TAR) or (not name.endswith(".zip") and tarfile.is_tarfile(file)):
            return _tar_members(file, member)
        if name.endswith(".zip") or zipfile.is_zipfile(file):
            return _zip_members(file, member)
    raise InputError(f"{file} is no archive (.zip, .tar, .tgz, .tar.xz, …) and has no members: leave !{member} out")


def _zip_members(file: Path, member: str) -> Iterator[tuple[str, IO[bytes]]]:
    with named_errors(str(file)), zipfile.ZipFile(file) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if info.is_dir() or not fnmatchcase(info.filename, member):
                continue
            if info.flag_bits & 1:
                raise CorruptFile(f"{file}!{info.filename} is encrypted: unpack it first")
            with archive.open(info) as opened:
                yield info.filename, opened


def _tar_members(file: Path, member: str) -> Iterator[tuple[str, IO[bytes]]]:
    with named_errors(str(file)), tarfile.open(file) as archive:
        for info in archive:
            if fnmatchcase(info.name, member) and (opened := archive.extractfile(info)) is not None:
                if not info.isreg():
                    raise UnsafeFile(f"{file}!{info.name} is a link, which could lead anywhere")
                yield info.name, opened


@contextmanager
def _unpacked(raw: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    unpack = UNPACK.get(PurePosixPath(name).suffix.lower())
    if unpack is None:
        yield raw
        return
    with unpack(raw) as opened:
        yield cast(IO[bytes], opened)


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """What goes wrong in reading the file `name`, as CorruptFile or NotFound by that name."""
    try:
        yield
    except _BROKEN as error:
        raise CorruptFile(f"{name}: damaged, or it breaks off: {error}") from error
    except IsADirectoryError:
        raise NotFound(f"{name} is a folder: name its files, as in {name}/*") from None
    except FileNotFoundError:
        raise NotFound(f"{name} is not there") from None
    except OSError as error:
        raise CorruptFile(f"{name}: can't be read: {error.strerror or error}") from error


def numbered_lines(file: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """Lines from 1 on, without their ends (LF or CR LF)."""
    for number, line in enumerate(iter(partial(file.readline, MAX_RECORD + 1), b""), 1):
        if len(line) > MAX_RECORD:
            raise CorruptFile(f"{name}:{number}: a line of more than {MAX_RECORD >> 20} MB")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")
