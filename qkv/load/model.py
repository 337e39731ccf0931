"""From a reference to a model that runs, and from a model to a folder that transformers loads."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.families.family import Family, find
from qkv.inputs.text import Tokenizer
from qkv.kernels.native import TYPES, native, reason
from qkv.load.checkpoint import FolderCheckpoint, GgufCheckpoint, open_checkpoint
from qkv.load.describe import Described, describe, token_ids
from qkv.load.head import other_names, with_new_head, without_pooler
from qkv.load.safetensors import save_sharded
from qkv.load.scheme import KEY, scheme_of
from qkv.load.sentence import Sentence
from qkv.load.sentence import write as write_sentence
from qkv.load.weights import export, export_packed, fill
from qkv.nn.stack import Transformer
from qkv.write import write_json

T = TypeVar("T", bound=Transformer)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    ref: str | Path,
    make: type[T],
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    new_head: str | spec.Head | None = None,
    labels: Sequence[str] | None = None,
    progress: bool = True,
) -> tuple[T, Tokenizer | None, Described, list[str]]:
    """A model of class `make` with all its weights, its tokenizer (None: the folder has none), what describes it, and
    notes on what was out of the ordinary. `dtype` None: as stored; packed matrices (of a GGUF file, or of a folder that
    `qkv quantize` wrote) stay packed on a CPU, the rest is float32. `new_head` and `labels`: as in
    `qkv.load.head.with_new_head`.

    Raises what `describe`, `fill` and `Tokenizer` raise; nothing half-made is ever returned."""
    dtype, device = _dtype(dtype), torch.device(device or "cpu")
    described = describe(ref, config_only=False, progress=progress)
    wanted, architecture = with_new_head(described, new_head, labels)
    checkpoint = open_checkpoint(described, dtype)
    how: list[str] = []
    if described.packed and dtype is None:
        checkpoint.keep, how = _kept_packed(checkpoint, device)
        dtype = torch.float32
    table = described.table(architecture)
    wanted, said = without_pooler(wanted, table, checkpoint.shapes(), described.family.prefix)
    if architecture is described.architecture:
        said += other_names(described.spec.head, wanted.head)
    with torch.device("meta"):
        model = make(wanted)
    if described.gguf is not None:
        tokenizer: Tokenizer | None = Tokenizer.from_gguf(described.gguf.metadata)
    else:
        assert described.folder is not None
        has_one = "tokenizer.json" in described.folder.tokenizer
        tokenizer = Tokenizer.from_folder(described.folder.root) if has_one else None
    notes = [] if tokenizer is not None else [_no_tokenizer(described)]
    notes += (
        how
        + said
        + fill(
            model,
            table,
            checkpoint,
            described.family,
            architecture=architecture,
            new_head=new_head is not None or described.sentence is not None,
            dtype=dtype,
            device=device,
        )
    )
    if tokenizer is not None:
        tokenizer.check_rows(described.spec.vocab)
    return model.eval(), tokenizer, described, [*described.notes, *notes]


def save_model(
    model: Transformer,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    generation: Mapping[str, Any] | None = None,
    sentence: Sentence | None = None,
    tasks: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
    dequantize: bool = False,
) -> Path:
    """Write config.json, generation_config.json, weights and tokenizer as transformers reads them; for a model that
    pools its states into one vector also what sentence-transformers reads.

    Weights are written as the model holds them. Packed ones (int8 and int4, as `qkv.load.scheme` has them) stay packed,
    config.json says how, and only qkv reads the folder; `dequantize` writes them plain.

    ConfigError: the spec names no family, or the family's config can't say it. InputError: the folder already holds
    a model, or the weights are packed in a way that no folder keeps (`dequantize` is the way out)."""
    family = find(model.spec.family) if model.spec.family else None
    if family is None:
        raise ConfigError("this model's spec names no family, so there is no config.json that would describe it")
    config = family.config(model.spec)
    tensors, how = (export(model, family), {}) if dequantize else _as_held(model, family)
    target = Path(folder)
    if (target / "config.json").exists() or any(target.glob("*.safetensors*")):
        raise InputError(f"{target} already holds a model; choose another folder or remove it first")
    target.mkdir(parents=True, exist_ok=True)
    generation = {**_tokenizer_ids(tokenizer), **(generation or {})}
    save_sharded(target, tensors, max_shard_bytes)
    if tokenizer is not None:
        tokenizer.save(target, segments=model.spec.stacks[0].embed.segments > 1)
    if generation:
        write_json(target / "generation_config.json", generation)
    if isinstance(model.spec.head, spec.Pool):
        pooling = replace(sentence or Sentence(model.spec.head), head=model.spec.head)
        write_sentence(target, pooling, model.spec.dim)
    dtype = str(model.dtype).removeprefix("torch.")
    said = {**token_ids(generation), **({"task_specific_params": tasks} if tasks else {})}
    if model.spec.start is None:  # the spec's, not generation's own
        said.pop("decoder_start_token_id", None)
    # What the family says goes before: RoBERTa's padding token is where its positions begin.
    write_json(target / "config.json", {**said, **config, "torch_dtype": dtype, **how})
    return target


def _kept_packed(
    checkpoint: FolderCheckpoint | GgufCheckpoint, device: torch.device
) -> tuple[Collection[str], list[str]]:
    """The types of blocks that stay packed in memory, and a note on that."""
    shapes = checkpoint.shapes()
    stored = Counter(kind for name, kind in checkpoint.kinds.items() if len(shapes[name]) == 2)
    keep = TYPES.keys() & stored.keys()
    if not keep:
        return (), []
    if device.type != "cpu" or native() is None:
        why = f"they stay packed on the CPU only, not on {device.type}" if device.type != "cpu" else reason()
        return (), [f"the packed weights are held as float32: {why}"]
    kinds = ", ".join(f"{stored[kind]} {kind}" for kind in sorted(keep, key=lambda kind: -stored[kind]))
    return keep, [f"{kinds} matrices stay packed, activations are float32 (a dtype holds them plainly)"]


def _as_held(model: Transformer, family: Family) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors to write, packed ones as their bytes, and what config.json says of that (nothing: all are plain)."""
    held = export_packed(model, family)
    tensors = {name: tensor for name, (tensor, _) in held.items()}
    kinds = {name: kind for name, (_, kind) in held.items() if kind is not None}
    if not kinds:
        return tensors, {}
    plain = [name for name, tensor in tensors.items() if name not in kinds and tensor.ndim > 1]
    return tensors, {KEY: scheme_of(kinds, plain).config()}


def _tokenizer_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The special tokens that a tokenizer knows, as a generation config says them (tokenizer files hold one eos)."""
    if tokenizer is None:
        return {}
    ends = list(tokenizer.eos)
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {name: id for name, id in {**ids, "pad_token_id": tokenizer.pad}.items() if id is not None}


def _no_tokenizer(described: Described) -> str:
    others = sorted(described.folder.tokenizer) if described.folder is not None else []
    said = f"; of {', '.join(others)} alone none is made" if others else ""
    return f"there is no tokenizer.json, so the model takes and gives ids, not text{said}"


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype
