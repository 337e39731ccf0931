"""Sentence-transformers folders: what they do around the Transformer (Sentence-BERT, arXiv 1908.10084).

`modules.json` lists modules by the names of classes; here these are only compared, nothing is imported. Understood are
a Transformer, one pooling of its states and a normalisation, as written by any version from 2 to 6. Whatever else a
folder asks for is a ConfigError that names it: left out, it would change every vector.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv import spec
from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.load.folder import CONFIG_FILES, MODULES, SENTENCE_CONFIGS, check_member, inside
from qkv.strict_json import read_json, read_json_list
from qkv.write import write_json, write_text

MODEL_CONFIG = "config_sentence_transformers.json"
_OLD = "sentence_transformers.models."  # until 5.3; later versions still read these names, so they are what is written
_NEW = "sentence_transformers.base.modules."
_POOLINGS = "sentence_transformers.sentence_transformer.modules."
_TYPES = {
    f"{_OLD}Transformer": "Transformer",
    f"{_NEW}transformer.Transformer": "Transformer",
    f"{_OLD}Pooling": "Pooling",
    f"{_POOLINGS}pooling.Pooling": "Pooling",
    f"{_OLD}Normalize": "Normalize",
    f"{_NEW}normalize.Normalize": "Normalize",
    f"{_POOLINGS}normalize.Normalize": "Normalize",  # 5.4 and 5.5
}
_FLAGS = {  # until 5.3; several at once are concatenated
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODES: dict[str, spec.Pooling] = {"cls": "cls", "max": "max", "mean": "mean", "lasttoken": "last"}
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}


@dataclass(frozen=True)
class Sentence:
    """How a folder makes one vector of a text.

    length: at most so many tokens, special ones included (None: not said). lower: letters are made small first.
    prompts: texts to put before the text, by name; `default_prompt` names the one used where none is asked for.
    similarity: what the vectors were trained to be compared by (None: not said)."""

    head: spec.Pool
    length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str | None = None


def read(folder: Path, dim: int | None = None) -> Sentence | None:
    """What the files in `folder` say, or None where there is no modules.json.

    `dim`: the model's, which the pooling's must be. ConfigError: a module, mode or key that qkv has no part for;
    UnsafeFile: a module outside the folder; CorruptFile, NotFound: as for each file."""
    if not (folder / MODULES).is_file():
        return None
    try:
        return _read(folder, dim)
    except ConfigError as error:
        raise ConfigError(f"{error}. Without {MODULES} the Transformer alone is loaded") from error


def write(folder: Path, sentence: Sentence, dim: int) -> None:
    """Write the files that sentence-transformers (2 to 6) loads, beside a model of width `dim` in `folder`."""
    head = sentence.head
    names = ["Transformer", "Pooling", *(["Normalize"] if head.normalize else [])]
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(names) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": _OLD + name}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
    modes = {flag: _MODES.get(mode) == head.how for flag, mode in _FLAGS.items()}
    write_json(folder / paths[1] / CONFIG_FILES[0], {"word_embedding_dimension": dim, **modes, "include_prompt": True})
    if head.normalize:
        write_json(folder / paths[2] / CONFIG_FILES[0], {})
    write_json(folder / SENTENCE_CONFIGS[0], {"max_seq_length": sentence.length, "do_lower_case": sentence.lower})
    said = {"default_prompt_name": sentence.default_prompt, "similarity_fn_name": sentence.similarity}
    write_json(folder / MODEL_CONFIG, {"prompts": dict(sentence.prompts), **said})
    write_text(folder / MODULES, json.dumps(modules, indent=2) + "\n")


def _read(folder: Path, dim: int | None) -> Sentence:
    pooling, normalize = _modules(folder)
    where = inside(folder, pooling)
    how = _pooling(Reader(read_json(where), f"{where}:"), dim)  # a file that isn't there would leave the mode open
    if normalize is not None and (folder / normalize).is_file():
        _normalize(_reader(folder, normalize))
    length, lower = _transformer(folder)
    about = _reader(folder, MODEL_CONFIG)
    about.ignore("__version__", "requirements")  # of Python packages
    about.only("model_type", "SentenceTransformer")
    about.only("truncate_dim", None)
    prompts, default = _prompts(about)
    similarity = about.get("similarity_fn_name", default=None)
    if similarity is not None and similarity not in _SIMILARITIES:
        raise about.wrong("similarity_fn_name", f"must be one of {', '.join(_SIMILARITIES)}, got {similarity!r:.80}")
    _done(about)
    return Sentence(spec.Pool(how=how, normalize=normalize is not None), length, lower, prompts, default, similarity)


def _modules(folder: Path) -> tuple[str, str | None]:
    """The config files of the pooling and, where there is one, the normalisation."""
    where = inside(folder, MODULES)
    found: list[tuple[str, str]] = []
    for i, entry in enumerate(read_json_list(where)):
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: module {i} must be an object, got {entry!r:.60}")
        module = Reader(entry, f"{where}: module {i},")
        module.ignore("idx", "name")
        module.only("kwargs", None, [], {})
        kind, path = module.get("type"), module.get("path")
        _done(module)
        if not isinstance(kind, str) or kind not in _TYPES:
            raise module.wrong("type", f"is {kind!r:.80}; qkv knows Transformer, Pooling and Normalize")
        if not isinstance(path, str):
            raise module.wrong("path", f"must be a text, got {path!r:.60}")
        if path:
            check_member(path, where=str(where))
        found.append((_TYPES[kind], path))
    kinds = [kind for kind, _ in found]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ConfigError(
            f"{where}: the modules are {', '.join(kinds) or 'none'}; qkv has parts for Transformer, Pooling and, last, "
            "Normalize"
        )
    if found[0][1]:
        raise ConfigError(f"{where}: the Transformer lies in {found[0][1]!r}; move its files up beside {MODULES}")
    configs = [f"{path}/{CONFIG_FILES[0]}" for _, path in found[1:]]
    return configs[0], configs[1] if len(configs) > 1 else None


def _reader(folder: Path, name: str) -> Reader:
    """A file's keys; of one that is not there, none."""
    path = inside(folder, name)
    return Reader(read_json(path) if path.is_file() else {}, f"{path}:")


def _done(reader: Reader) -> None:
    """No key is left that was not taken (config.json's neutral ones are not neutral here)."""
    if unknown := sorted(reader.config.keys() - reader.taken):
        raise reader.wrong(unknown[0], "is unknown to qkv. A key that is ignored could change the vectors")


def _pooling(config: Reader, dim: int | None) -> spec.Pooling:
    width = config.whole("embedding_dimension", "word_embedding_dimension", default=None)
    if None not in (dim, width) and dim != width:
        raise config.wrong("embedding_dimension", f"is {width}, and the model's states have {dim} numbers")
    config.only("include_prompt", True)
    active = [mode for flag, mode in _FLAGS.items() if config.flag(flag, default=False)]
    said = config.get("pooling_mode", default=active or ["mean"])
    modes = [said] if isinstance(said, str) else said
    _done(config)
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in _MODES:
        said = ", ".join(map(str, modes)) if isinstance(modes, list) else modes
        raise config.wrong("pooling_mode", f"is {said!r:.80}; qkv has parts for one of {', '.join(_MODES)}")
    return _MODES[modes[0]]


def _normalize(config: Reader) -> None:
    for key in ("module_input_name", "module_output_name"):
        config.only(key, "sentence_embedding", None)
    _done(config)


def _transformer(folder: Path) -> tuple[int | None, bool]:
    """(tokens at most, lower case)."""
    name = next((name for name in SENTENCE_CONFIGS if (folder / name).is_file()), SENTENCE_CONFIGS[0])
    config = _reader(folder, name)
    config.ignore("unpad_inputs")  # a matter of speed
    config.only("transformer_task", "feature-extraction")
    config.only("modality_config", _TEXT)
    config.only("module_output_name", "token_embeddings")
    for key in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        config.only(key, None)
    for key in ("processing_kwargs", *(f"{of}_{what}" for of in _LOADED for what in ("args", "kwargs"))):
        config.only(key, None, {})
    lower = config.flag("do_lower_case", default=False)
    length = config.whole("max_seq_length", default=None)
    _done(config)
    return length or _tokenizer_length(folder), lower


_LOADED = ("model", "tokenizer", "processor", "config")


def _tokenizer_length(folder: Path) -> int | None:
    """The tokenizer's `model_max_length` or the config's positions, whichever is less (so sentence-transformers).

    Of a tokenizer without a limit transformers writes 10^30; XLNet's config says −1 positions."""
    keys = {"tokenizer_config.json": "model_max_length", CONFIG_FILES[0]: "max_position_embeddings"}
    said: list[Any] = [_reader(folder, name).config.get(key) for name, key in keys.items()]
    return min((n for n in said if isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**30), default=None)


def _prompts(config: Reader) -> tuple[dict[str, str], str | None]:
    prompts, default = config.get("prompts", default={}), config.get("default_prompt_name", default=None)
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise config.wrong("prompts", f"must map names to texts, got {prompts!r:.80}")
    if default is not None and default not in prompts:
        raise config.wrong(
            "default_prompt_name", f"is {default!r:.80}; the prompts are: {', '.join(prompts) or 'none'}"
        )
    return {name: text or "" for name, text in prompts.items()}, default
