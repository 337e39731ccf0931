"""What a folder of a checkpoint says of itself: manifest.json with the size and sha256 of every other file, and the
names of such folders. `qkv.train.checkpoint` writes and reads them."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qkv.errors import CorruptFile, InputError, NotFound
from qkv.strict_json import read_json
from qkv.train.slices import Stamp, write_bytes

FORMAT = 1
STATE, MANIFEST = "state.json", "manifest.json"
MAX_STATE = 256 << 20  # bytes
_STEP = re.compile(r"step-(\d{8,})(\.old)?")
_STEM = re.compile(r"[a-z][a-z0-9_]*")
_FILE = re.compile(rf"({_STEM.pattern})(?:-\d{{5}}-of-\d{{5}})?\.safetensors")


def name_of(step: int) -> str:
    """step-00000100, and so on."""
    return f"step-{step:08}"


def steps(folder: Path) -> list[tuple[Path, int]]:
    """Checkpoints by their names, newest first, a step's `.old` after itself."""
    if not folder.is_dir():
        return []
    found = [(path, match) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    found.sort(key=lambda item: (-int(item[1][1]), item[1][2] is not None))
    return [(path, int(match[1])) for path, match in found]


def stem_of(file: str) -> str | None:
    """weights, for weights.safetensors and weights-00001-of-00002.safetensors; None: no file of tensors."""
    found = _FILE.fullmatch(file)
    return found[1] if found else None


def check_stem(stem: str) -> None:
    """InputError: a name that no file of tensors may have."""
    if not _STEM.fullmatch(stem):
        raise InputError(f"a checkpoint's file must be called by a word of a-z, 0-9 and _, not {stem!r:.80}")


def check_json(value: Any, where: str) -> None:
    """InputError: something that JSON would refuse, or give back as something else."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InputError(f"{where}: the key {key!r:.80} is no string, and JSON would make it one")
            check_json(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_json(inner, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, which JSON can't hold")
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise InputError(f"{where} is {value!r:.80}, which JSON can't hold")


def write_manifest(folder: Path, step: int, stamps: Mapping[str, Stamp]) -> None:
    """The last file of a checkpoint; then the folder itself is seen onto the disk."""
    files = {name: {"bytes": stamp.size, "sha256": stamp.sha256} for name, stamp in sorted(stamps.items())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    write_bytes(folder / MANIFEST, iter([json.dumps(manifest, indent=1).encode()]))
    sync(folder)


def sync(folder: Path) -> None:
    """See a folder's names onto the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def listed(path: Path, step: int) -> dict[str, Stamp]:
    """The files that the manifest lists. CorruptFile or NotFound: it isn't there or isn't what it should be."""
    where = path / MANIFEST
    manifest = read_json(where)
    if manifest.keys() != {"format", "step", "files"} or manifest["format"] != FORMAT:
        raise CorruptFile(f"{where}: not a manifest of this version of qkv")
    if manifest["step"] != step:
        raise CorruptFile(f"{where}: speaks of step {manifest['step']!r:.40}, in the folder of step {step}")
    stamps = dict(_stamps(where, manifest["files"]))
    if STATE not in stamps:
        raise CorruptFile(f"{where}: lists no {STATE}")
    return stamps


def check_whole(path: Path, step: int) -> dict[str, Stamp]:
    """`listed`, and every file is what the manifest says. CorruptFile or NotFound names the first that isn't."""
    stamps = listed(path, step)
    for name, stamp in stamps.items():
        _check(path / name, stamp)
    return stamps


def _stamps(where: Path, files: Any) -> Iterator[tuple[str, Stamp]]:
    if not isinstance(files, dict):
        raise CorruptFile(f"{where}: files must be an object, got {files!r:.80}")
    for name, said in files.items():
        whole = isinstance(said, dict) and said.keys() == {"bytes", "sha256"}
        if not whole or not (name == STATE or stem_of(name)):
            raise CorruptFile(f"{where}: {name!r:.80} is no entry of a file")
        yield name, Stamp(said["bytes"], said["sha256"])


def _check(path: Path, stamp: Stamp) -> None:
    try:
        size = path.stat().st_size
        if size != stamp.size:
            raise CorruptFile(f"{path}: {size} bytes, and {stamp.size!r:.40} were written")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise NotFound(f"{path} is missing") from error
    except OSError as error:
        raise CorruptFile(f"{path} can't be read: {error.strerror}") from error
    if digest != stamp.sha256:
        raise CorruptFile(f"{path}: its bytes are not those that were written (sha256 differs)")
