"""A tokenizer's files in Hugging Face layout: read what says which token is BOS, and which template to use; and write.

`tokenizer.json` is the whole tokenizer. `tokenizer_config.json` (and in older folders `special_tokens_map.json`) names
the special tokens; `chat_template.jinja` and `additional_chat_templates/` hold templates, or else the config does.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.errors import NotFound, TokenizerError
from qkv.inputs import guard
from qkv.inputs.backend import Backend

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE = "chat_template.jinja"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TEMPLATES = "additional_chat_templates"


@dataclass(frozen=True)
class Folder:
    """What a folder holds: the tokenizer, its size (largest id + 1), and by name its special tokens and templates."""

    backend: Backend
    size: int
    names: dict[str, str]
    templates: dict[str, str]


def frame(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> dict[str, Any]:
    """The post-processor, as in tokenizer.json, that puts BOS before and EOS after a text, where given."""

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        parts = [("SpecialToken", bos[0] if bos else None), ("Sequence", sequence), ("SpecialToken", eos and eos[0])]
        return [{part: {"id": id, "type_id": kind}} for part, id in parts if id]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {t: {"id": t, "ids": [id], "tokens": [t]} for t, id in filter(None, (bos, eos))},
    }


def read(path: Path, trust: bool) -> Folder:
    """Read a folder. Raises NotFound or TokenizerError, naming the file and field."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise NotFound(
            f"{file} is not there. A tokenizer in another form becomes one with "
            "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    data = guard.read_json(file)
    config = _optional(path / "tokenizer_config.json")
    special = {**_optional(path / "special_tokens_map.json"), **config}
    names = {name: _content(special[name], name, path) for name in NAMES if special.get(name) is not None}
    size = guard.check(data, str(file))
    size = _add_named(data, names, size)
    _set_frame(data, config, names)
    return Folder(guard.load(data, str(file), trust), size, names, _templates(path, config))


def _optional(file: Path) -> dict[str, Any]:
    return guard.read_json(file) if file.is_file() else {}


def _content(value: object, name: str, path: Path) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise TokenizerError(f"{path / 'tokenizer_config.json'}: {name} is {str(value)[:80]}, not a token")
    return content


def _add_named(data: dict[str, Any], names: Mapping[str, str], size: int) -> int:
    """Make the named tokens special. One that tokenizer.json lacks gets the next id, as in transformers.

    Returns the new size; `check_rows` objects where it is too large.
    """
    ids = _ids(data)
    added = data["added_tokens"] = [dict(token) for token in data.get("added_tokens") or ()]
    entries = {token["content"]: token for token in added}
    for content in dict.fromkeys(names.values()):
        if content in entries:
            entries[content]["special"] = True
            continue
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": ids.get(content, size), "content": content, **flags, "special": True})
        size += content not in ids
    return size


def _ids(data: dict[str, Any]) -> dict[str, int]:
    vocab = data["model"]["vocab"]
    ids = dict(vocab) if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}
    return ids | {token["content"]: token["id"] for token in data.get("added_tokens") or ()}


def _set_frame(data: dict[str, Any], config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """`add_bos_token` and `add_eos_token` in the config overrule the post-processor, as in transformers 5."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    ids = _ids(data)
    ends = [
        (names[name], ids[names[name]]) if config.get(f"add_{name}") and name in names else None
        for name in ("bos_token", "eos_token")
    ]
    data["post_processor"] = frame(*ends)


def _templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    files = {file.stem: file for file in sorted((path / _TEMPLATES).glob("*.jinja"))}
    if (path / _TEMPLATE).is_file():
        files["default"] = path / _TEMPLATE
    if files:
        return {name: _text(file) for name, file in files.items()}
    match config.get("chat_template"):
        case None:
            return {}
        case str() as template:
            return {"default": template}
        case list() as entries if all(map(_is_named, entries)):
            return {entry["name"]: entry["template"] for entry in entries}
    raise TokenizerError(f"{path / 'tokenizer_config.json'}: chat_template is no template and no list of named ones")


def _is_named(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))


def _text(file: Path) -> str:
    if file.stat().st_size > guard.MAX_BYTES:
        raise TokenizerError(f"{file} has {file.stat().st_size:,} bytes; the limit is {guard.MAX_BYTES:,}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{file} isn't UTF-8: {error}") from None


def write(folder: Path, source: str, names: Mapping[str, str], templates: Mapping[str, str]) -> None:
    """Write the files that `read` and transformers' AutoTokenizer load; templates of an earlier save don't stay."""
    folder.mkdir(parents=True, exist_ok=True)
    # The generic class takes tokenizer.json as it is. A model's own class would rebuild parts of it by its own rules.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    for name, content in (
        ("tokenizer.json", source),
        ("tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n"),
        ("special_tokens_map.json", json.dumps(dict(names), indent=2, ensure_ascii=False) + "\n"),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    for stale in ((folder / _TEMPLATE), *(folder / _TEMPLATES).glob("*.jinja")):
        stale.unlink(missing_ok=True)
    for name, template in templates.items():
        if not _TEMPLATE_NAME.fullmatch(name):
            raise TokenizerError(f"the chat template's name {name!r} can't be a file's")
        file = folder / _TEMPLATE if name == "default" else folder / _TEMPLATES / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        file.write_text(template, encoding="utf-8")
