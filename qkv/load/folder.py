"""What a model folder holds, judged by names and JSON alone: nothing in it is imported, executed or unpickled.

The layout is Hugging Face's: `config.json`, `*.safetensors` (one file, or shards with `model.safetensors.index.json`),
tokenizer files, and sentence-transformers' files around these; or one `.gguf` that carries all of that itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from qkv.errors import CorruptFile, NotFound, UnsafeFile
from qkv.strict_json import read_json

CONFIG_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)
MODULES = "modules.json"
SENTENCE_CONFIGS = tuple(  # the first that is there counts (so sentence-transformers)
    f"sentence_{model}_config.json"
    for model in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
SENTENCE_FILES = (MODULES, *SENTENCE_CONFIGS, "config_sentence_transformers.json")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
OTHER_FORMATS = (".h5", ".msgpack", ".onnx", ".npz", ".ot")
MAX_INDEX = 64 << 20  # bytes; the index of a model with 100,000 tensors has 10 MB

_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.(safetensors|gguf)")
_CONVERT = (
    "convert it to safetensors where you trust it: "
    "transformers' AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)"
)


@dataclass(frozen=True)
class WeightChoice:
    """Which weights of a folder or repository are used, and what was left aside and why (`notes`).

    `name` is the file, or the index of the shards when `sharded`.
    """

    kind: Literal["safetensors", "gguf"]
    name: str
    sharded: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderFiles:
    """The files of one model in Hugging Face layout; every path exists and lies inside `root` (or the hub's blobs)."""

    root: Path
    config: Path
    generation_config: Path | None
    weights: tuple[Path, ...]  # one file or all shards; empty where only the config was asked for
    index: Path | None
    tokenizer: Mapping[str, Path]  # by file name, those of TOKENIZER_FILES that are there
    notes: tuple[str, ...]  # what is there and not used, one sentence each


def folder_files(path: Path, *, config_only: bool = False) -> FolderFiles:
    """List the model in the folder `path`, or around the lone `.safetensors` file `path`.

    Raises NotFound (no config, no weights, a missing shard), UnsafeFile (only pickled weights, a link or a shard name
    that leaves the folder), CorruptFile (a broken index).
    """
    lone = None if path.is_dir() else path
    root = path if lone is None else path.parent
    names = list_names(root)
    if CONFIG_FILES[0] not in names:
        raise NotFound(f"{root}: no config.json here{_no_config_hint(names, lone)}")
    choice: WeightChoice | None = None
    if lone is not None:
        choice = _lone_choice(lone)
    elif not config_only:
        choice = choose_weights(names, where=str(root))
    weights: tuple[str, ...] = ()
    if choice is not None and not config_only:
        weights = shard_names(root / choice.name) if choice.sharded else (choice.name,)
    return FolderFiles(
        root=root,
        config=inside(root, CONFIG_FILES[0]),
        generation_config=inside(root, CONFIG_FILES[1]) if CONFIG_FILES[1] in names else None,
        weights=_all_there(root, weights),
        index=inside(root, INDEX) if choice is not None and choice.sharded else None,
        tokenizer={name: inside(root, name) for name in TOKENIZER_FILES if name in names},
        notes=_code_notes(names) + (choice.notes if choice is not None else ()),
    )


def list_names(folder: Path) -> list[str]:
    """The sorted names in `folder`; NotFound where it can't be listed."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise NotFound(f"{folder}: {error.strerror or error}") from error


def choose_weights(names: Collection[str], *, where: str) -> WeightChoice:
    """Pick the weights among file `names` of a folder or hub repository `where`: safetensors, else the one GGUF.

    Raises UnsafeFile where only pickled weights are there, NotFound where there are none or several candidates.
    """
    top = sorted(name for name in names if "/" not in name)
    tensors = [name for name in top if name.endswith(".safetensors") and name != "adapter_model.safetensors"]
    ggufs = [name for name in top if name.endswith(".gguf")]
    if SINGLE in top:
        return WeightChoice("safetensors", SINGLE, notes=_left_aside(top, {SINGLE}, SINGLE))
    if INDEX in top:
        shards = {name for name in tensors if _SHARD.fullmatch(name)}
        return WeightChoice("safetensors", INDEX, sharded=True, notes=_left_aside(top, {INDEX, *shards}, INDEX))
    if tensors:
        chosen = _only(tensors, where, f"give one of them as a path, or name one {SINGLE}")
        return WeightChoice("safetensors", chosen, notes=_left_aside(top, {chosen}, chosen))
    if ggufs:
        chosen = _only(ggufs, where, "name one: FOLDER/FILE.gguf for a folder, org/name:FILE.gguf for the hub")
        return WeightChoice("gguf", chosen, notes=_left_aside(top, {chosen}, chosen))
    raise _no_weights(top, where)


def shard_names(index: Path) -> tuple[str, ...]:
    """The shard files that an index names, in order, each a plain name inside the folder.

    Raises CorruptFile where `weight_map` is not a table of strings, UnsafeFile where a name leaves the folder.
    """
    weight_map = read_json(index, limit=MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index}: weight_map must map tensor names to shard files, and is {weight_map!r:.60}")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CorruptFile(f"{index}: weight_map[{tensor!r}] must be a file name, and is {shard!r:.60}")
        check_member(shard, where=str(index))
        if not shard.endswith(".safetensors"):
            raise UnsafeFile(f"{index}: weight_map[{tensor!r}] names {shard!r}; only .safetensors shards are read")
    return tuple(sorted(set(weight_map.values())))


def sentence_names(names: Collection[str]) -> tuple[str, ...]:
    """Those of the files of a sentence-transformers repository that say what is done around the Transformer."""
    if MODULES not in names:
        return ()
    modules = sorted(name for name in names if name.count("/") == 1 and name.endswith(f"/{CONFIG_FILES[0]}"))
    return (*(name for name in SENTENCE_FILES if name in names), *modules)


def check_member(name: str, *, where: str) -> None:
    """Refuse a relative file name, taken from an untrusted list, that could reach outside its folder (UnsafeFile).

    Percent signs are refused because a server may decode them (`%2e%2e`), colons because of drives and streams.
    """
    parts = PurePosixPath(name).parts
    bad = not name or name.startswith("/") or ".." in parts or any(c in "\\:%" or ord(c) < 32 for c in name)
    if bad:
        raise UnsafeFile(f"{where}: refuses the file name {name!r}: it is not a plain path inside the folder")


def inside(root: Path, name: str) -> Path:
    """`root / name`, after checking that no link leads out of `root` (the hub cache's own blobs apart; UnsafeFile)."""
    path = root / name
    real = path.resolve()
    base = root.resolve()
    allowed = [base]
    if base.parent.name == "snapshots" and base.parent.parent.name.startswith("models--"):
        repo = base.parent.parent
        allowed += [repo / "blobs", repo.parent / "blobs"]  # the second is the hub's store shared between repositories
    if not any(real.is_relative_to(folder) for folder in allowed):
        raise UnsafeFile(f"{path} is a link to {real}, outside the model's folder; copy the file in instead")
    return path


def _all_there(root: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise NotFound(f"{root}: {len(missing)} of {len(names)} weight files missing: {', '.join(missing)}")
    return tuple(inside(root, name) for name in names)


def _lone_choice(file: Path) -> WeightChoice:
    if _SHARD.fullmatch(file.name):
        raise NotFound(f"{file}: one shard of a model; give its folder, {file.parent}")
    return WeightChoice("safetensors", file.name)


def _no_config_hint(names: list[str], lone: Path | None) -> str:
    if lone is not None:
        return f", and {lone.name} needs it beside it: a .safetensors file says nothing about its model"
    if "adapter_config.json" in names:
        return ", only adapter_config.json: this is an adapter, not a model; load its base model"
    if any(name.endswith(".gguf") for name in names):
        return "; for a model in GGUF give the .gguf file"
    return f" (it holds {_some(names)})" if names else " (the folder is empty)"


def _only(names: list[str], where: str, way_out: str) -> str:
    if len(names) > 1 and all(_SHARD.fullmatch(name) for name in names):
        cure = f"{INDEX} is missing" if names[0].endswith(".safetensors") else "join them with llama-gguf-split --merge"
        raise NotFound(f"{where}: one model in {len(names)} parts ({_some(names)}); {cure}")
    if len(names) > 1:
        raise NotFound(f"{where}: {len(names)} candidates for the weights ({_some(names)}); {way_out}")
    return names[0]


def _no_weights(top: list[str], where: str) -> NotFound | UnsafeFile:
    pickles = [name for name in top if name.endswith(PICKLES)]
    others = [name for name in top if name.endswith(OTHER_FORMATS)]
    if pickles:
        return UnsafeFile(f"{where}: only pickled weights ({_some(pickles)}), and qkv has no pickle loader; {_CONVERT}")
    if others:
        return NotFound(f"{where}: weights only as {_some(others)}; qkv reads .safetensors and .gguf")
    return NotFound(f"{where}: no weights (.safetensors or .gguf) here (it holds {_some(top) or 'nothing'})")


def _left_aside(top: list[str], used: set[str], chosen: str) -> tuple[str, ...]:
    pickles = [name for name in top if name.endswith(PICKLES)]
    others = [n for n in top if n not in used and n.endswith((".safetensors", ".gguf", INDEX, *OTHER_FORMATS))]
    notes = [f"ignored {_some(pickles)}: qkv opens no pickle, and {chosen} is used"] if pickles else []
    return (*notes, *([f"ignored {_some(others)}: {chosen} is used"] if others else []))


def _code_notes(names: list[str]) -> tuple[str, ...]:
    code = [name for name in names if name.endswith(".py")]
    return (f"ignored {_some(code)}: qkv runs no code that comes with a model",) if code else ()


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
