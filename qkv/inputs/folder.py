"""A tokenizer's files in Hugging Face layout: read what says which token is BOS, and which template to use; and write.

`tokenizer.json` is the whole tokenizer, with what it puts around a text: as in transformers 5, `add_bos_token` beside
it doesn't count. `tokenizer_config.json` (and in older folders `special_tokens_map.json`) names the special tokens;
`chat_template.jinja` and `additional_chat_templates/` hold templates, or else the config does.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkv.errors import NotFound, TokenizerError
from qkv.inputs import guard
from qkv.inputs.backend import Backend
from qkv.strict_json import read_json
from qkv.write import write_json, write_text

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


def read(path: Path, trust: bool) -> Folder:
    """Read a folder. Raises NotFound or TokenizerError, naming the file and field."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise NotFound(
            f"{file} is not there. A tokenizer in another form becomes one with "
            "transformers.AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    data = _json(file)
    config = _optional(path / "tokenizer_config.json")
    special = config
    if "added_tokens_decoder" not in config:  # an older folder, where the map has the say (so transformers)
        special = config | _optional(path / "special_tokens_map.json")
    names = {name: _content(special[name], name, path) for name in NAMES if special.get(name) is not None}
    size = guard.check(data, str(file))
    size = _add_named(data, names, size)
    return Folder(guard.load(data, str(file), trust), size, names, _templates(path, config))


def _json(file: Path) -> dict[str, Any]:
    return read_json(file, guard.MAX_BYTES, error=TokenizerError)


def _optional(file: Path) -> dict[str, Any]:
    return _json(file) if file.is_file() else {}


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


def write(folder: Path, source: str, names: Mapping[str, str], templates: Mapping[str, str], segments: bool) -> None:
    """Write the files that `read` and transformers' AutoTokenizer load; templates of an earlier save don't stay.
    `segments`: say that the model takes token types, which the generic class leaves out otherwise."""
    for name in templates:
        if not _TEMPLATE_NAME.fullmatch(name):
            raise TokenizerError(f"the chat template's name {name!r} can't be a file's")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tokenizer.json", source)
    # The generic class takes tokenizer.json as it is. A model's own class would rebuild parts of it by its own rules.
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    if segments:
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)
    for stale in ((folder / _TEMPLATE), *(folder / _TEMPLATES).glob("*.jinja")):
        stale.unlink(missing_ok=True)
    for name, template in templates.items():
        file = folder / _TEMPLATE if name == "default" else folder / _TEMPLATES / f"{name}.jinja"
        file.parent.mkdir(exist_ok=True)
        write_text(file, template)
