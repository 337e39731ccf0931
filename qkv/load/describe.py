"""What a reference holds, from its config or header alone: no torch, no weights. `qkv show` needs nothing more."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.errors import ConfigError, NotFound
from qkv.families.config import GENERATION
from qkv.families.family import Architecture, Family, Row, find
from qkv.load.folder import FolderFiles, folder_files
from qkv.load.ggml import gguf_config
from qkv.load.gguf import GgufFile, read_gguf
from qkv.load.reference import Source, resolve
from qkv.load.safetensors import TensorInfo, read_weights
from qkv.load.scheme import KEY, Scheme, packed_kinds, read_scheme
from qkv.load.sentence import Sentence
from qkv.load.sentence import read as read_sentence
from qkv.spec import Model
from qkv.strict_json import read_json


@dataclass(frozen=True)
class Described:
    """A model without its weights.

    `generation`: generation_config.json over the token ids of config.json, or what config.json says of it, and
    `generation_from` which of them there were (a GGUF file has neither, its tokenizer knows where a text ends).
    `config`: config.json without its `quantization_config`, which is `scheme`: how the folder's matrices are packed
    (None: they are plain). `sentence`: how a sentence-transformers folder makes one vector of a text. Exactly one of
    `folder` and `gguf` is there."""

    source: Source
    family: Family
    spec: Model
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    generation_from: str
    notes: tuple[str, ...] = ()
    folder: FolderFiles | None = None
    sentence: Sentence | None = None
    scheme: Scheme | None = None
    gguf: GgufFile | None = field(default=None, repr=False)

    @property
    def architecture(self) -> Architecture:
        """The kind of checkpoint that it is."""
        return self.family.architecture(self.config)

    @property
    def packed(self) -> bool:
        """Whether weights are stored in blocks of a few bits, or may be (a GGUF file's)."""
        return self.gguf is not None or self.scheme is not None

    def stored(self) -> dict[str, int]:
        """The bytes of packed weights' files by what they are stored as, largest first; nothing for a folder of plain
        ones, or without the weights. Raises as headers' readers do."""
        found: Counter[str] = Counter()
        if self.gguf is not None:
            for tensor in self.gguf.tensors.values():
                found[tensor.type] += tensor.nbytes
        elif self.scheme is not None and self.source.kind != "config":
            tensors = _tensors(self.source.path)
            kinds = packed_kinds(str(self.source.path), tensors, self.scheme) if tensors else {}
            for name, info in tensors.items():
                found[kinds.get(name, info.dtype)] += info.end - info.start
        return dict(found.most_common())

    @property
    def tasks(self) -> Mapping[str, Any]:
        """What config.json says of some tasks (`task_specific_params`), by name. ConfigError: that is no table."""
        said = self.config.get("task_specific_params")
        if said is not None and not isinstance(said, Mapping):
            raise ConfigError(f"{self.source.path}: 'task_specific_params' must be an object, got {said!r:.60}")
        return said or {}

    def table(self, architecture: Architecture) -> Sequence[Row]:
        """The checkpoint's tensors, with the head of this architecture."""
        if self.gguf is None:
            return self.family.table(architecture)
        assert self.family.gguf is not None
        own = architecture is self.family.architectures[0]  # GGUF has its own names for a language model's head
        return (*self.family.gguf.weights, *(() if own else architecture.rows))


def describe(ref: str | Path, *, config_only: bool = True, progress: bool = True) -> Described:
    """Resolve a reference and read its config. ConfigError, CorruptFile, NotFound, UnsafeFile as each file deserves."""
    source = resolve(ref, config_only=config_only, progress=progress)
    if source.kind == "gguf":
        file = read_gguf(source.path)
        family, config = gguf_config(file)
        return Described(source, family, family.spec(config), config, {}, "the GGUF file", gguf=file)
    if config_only and source.path.is_file() and source.path.suffix == ".json":
        return _of_config(source, read_json(source.path), None)
    files = folder_files(source.path, config_only=config_only)
    return _of_config(source, read_json(files.config), files)


def _of_config(source: Source, config: dict[str, Any], files: FolderFiles | None) -> Described:
    if "model_type" not in config:
        raise ConfigError(f"{source.path}: config.json has no 'model_type', so its family isn't known")
    scheme = read_scheme(config.get(KEY), str(source.path))
    config = {key: value for key, value in config.items() if key != KEY}
    family = find(config["model_type"])
    if files is not None and files.generation_config is not None:
        generation, said_by = token_ids(config) | read_json(files.generation_config), "generation_config.json"
    else:  # as transformers has it
        generation, said_by = {key: config[key] for key in GENERATION if config.get(key) is not None}, "config.json"
    notes = files.notes if files is not None else ()
    model = family.spec(config)
    sentence = read_sentence(files.root, model.dim) if files is not None else None
    return Described(source, family, model, config, generation, said_by, notes, files, sentence, scheme)


def _tensors(path: Path) -> dict[str, TensorInfo]:
    """What the headers of a folder's weights say; nothing where only its config is here, as it may be of the hub's."""
    try:
        files = folder_files(path)
    except NotFound:
        return {}
    return {name: info for header in read_weights(files) for name, info in header.tensors.items()}


def token_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a config or generation config names."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
