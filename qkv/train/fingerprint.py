"""What samples were made of, as a small table: the same table, the same samples. And what changed, in words."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qkv.errors import NotFound
from qkv.inputs.text import Tokenizer
from qkv.train import recipe, records

VERSION = 2  # of the form that shards have: another one makes them anew
Fingerprint = dict[str, Any]

_APART = {
    "train",
    "valid",
    "test",
    "root",
    "skip_bad",
    "workers",
    "limit",
}  # of `data`: told by the files, or no matter
_LATER = {"smoothing"}  # of the objective: shapes the loss, not the samples


def fingerprint(
    data: recipe.Data,
    which: records.Part,
    root: Path,
    tokenizer: str,
    objective: recipe.Objective,
    length: int | None,
    extra: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """Of a part of the data: SHA-256 of each file's content by its name, and of `tokenizer` (`described`),
    and all of the recipe that shapes samples. `extra`: what else does, such as the labels; values of JSON.

    NotFound: a file isn't there, or the hub doesn't say which revision of a data set it would give."""
    files: recipe.Files = getattr(data, which) or data.train
    settings = data.model_dump(mode="json", exclude=_APART)
    made: Fingerprint = {
        "version": VERSION,
        "part": which,
        "files": _files(files, data, root),
        "tokenizer": hashlib.sha256(tokenizer.encode("utf-8", "surrogatepass")).hexdigest(),
        "data": settings | (_limit(data) if which == "train" else {}),
        "objective": objective.model_dump(mode="json", exclude=_LATER),
        "length": length,
        **(extra or {}),
    }
    plain: Fingerprint = json.loads(json.dumps(made))  # as it will be read back: lists, not tuples
    return plain


def described(tokenizer: Tokenizer) -> str:
    """All of a tokenizer that shapes samples: tokenizer.json, the roles of special tokens, which stand in another file,
    and what it puts around texts."""
    roles = {name: getattr(tokenizer, name) for name in ("eos", "bos", "pad", "unk", "sep", "cls", "mask")}
    frames = [[[slot.part, slot.id, slot.segment] for slot in tokenizer.frame(texts).slots] for texts in (1, 2)]
    return json.dumps([tokenizer.to_json(), roles, frames])


def _limit(data: recipe.Data) -> dict[str, Any]:
    return {"limit": data.limit} | ({"drawn": "by hash"} if data.limit is not None else {})


def digest(made: Fingerprint) -> str:
    """A fingerprint as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """What changed, a line each: "data.header was true and is false"; []: nothing."""
    was, now = ({**one, "files": dict(one.get("files", ()))} for one in (old, new))
    told = _differences(was, now, "")
    if not told and old != new:
        told.append("the files stand in another order")
    return told


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], under: str) -> list[str]:
    told: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        name = f"{under}{key}"
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            told += _differences(old[key], new[key], f"{name}." if key != "files" else "the file ")
        elif key not in new:
            told.append(f"{name} is gone")
        elif key not in old:
            told.append(f"{name} is new")
        elif old[key] != new[key]:
            content = under == "the file " or key == "tokenizer"
            told.append(
                f"{name} has other content"
                if content
                else f"{name} was {json.dumps(old[key])} and is {json.dumps(new[key])}"
            )
    return told


def _files(files: recipe.Files, data: recipe.Data, root: Path) -> list[list[str]]:
    found = []
    for source in records.sources(files, data, root):
        file = source.file
        name = (
            source.name if file is None else (file.relative_to(root) if file.is_relative_to(root) else file).as_posix()
        )
        name += f"!{source.member}" if source.member else ""
        fixed = f" set {json.dumps(source.set, sort_keys=True)}" if source.set else ""
        found.append([name + fixed, _revision(source.name) if file is None else _hash(file)])
    return found


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror or error}") from error


def _revision(name: str) -> str:
    """A local folder's content, or the commit that the hub has for a data set."""
    path, revision, _, _ = records.hub_name(name)
    if Path(path).is_dir():
        inside = sorted(file for file in Path(path).rglob("*") if file.is_file())
        text = "".join(f"{file.relative_to(path).as_posix()}\0{_hash(file)}\n" for file in inside)
        return hashlib.sha256(text.encode()).hexdigest()
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(path, revision=revision).sha)
    except Exception as error:  # the library's HTTP client has changed twice; its errors share no base class
        if revision is not None and len(revision) == 40:
            return revision  # a commit: its content can't be another
        raise NotFound(
            f"{name}: the hub doesn't answer ({error}), so what this data set holds can't be told; with a commit, "
            f"as in {path}@<40 hexadecimal digits>:…, it needn't be asked"
        ) from error
