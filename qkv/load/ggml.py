"""A GGUF file's metadata as its family's config, so that it is read as strictly as a folder's config.json."""

import math
import struct
from typing import Any

from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.families.family import Family, find_gguf
from qkv.load.gguf import GgufFile

ROPE_FACTORS = "rope_freqs.weight"


def gguf_config(file: GgufFile) -> tuple[Family, dict[str, Any]]:
    """The family and a Hugging Face config for it. ConfigError: an architecture or a key of it that isn't known."""
    arch = file.metadata.get("general.architecture")
    family = find_gguf(arch)
    assert family.gguf is not None
    own = {k.removeprefix(f"{arch}."): v for k, v in file.metadata.items() if k.startswith(f"{arch}.")}
    reader = Reader(own, f"{file.path} ({arch})")
    rows = file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else None
    reader.taken.add("vocab_size")  # the embedding's rows say it, and the tokenizer is checked against them
    config = family.gguf.config(reader)
    reader.done()
    if rows is None:
        raise ConfigError(f"{file.path}: there is no token_embd.weight, so this is not a language model's file")
    config |= {"vocab_size": rows, "tie_word_embeddings": "output.weight" not in file.tensors}
    if ROPE_FACTORS in file.tensors:
        config["rope_scaling"] = _llama3(file)
    for name in ("bos", "eos", "padding"):
        token = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None:
            config[f"{name.removesuffix('ding')}_token_id"] = token
    config["model_type"] = family.name
    return family, config


def _llama3(file: GgufFile) -> dict[str, Any]:
    """LLaMA 3.1's scaling, which GGUF stores as a factor a frequency: recognised by its values (factor the largest,
    low 1, high 4, length 8,192, as every LLaMA 3 has them) and checked against all of them."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.type != "F32":
        raise ConfigError(f"{file.path}: {ROPE_FACTORS} is {tensor.type}, expected F32")
    with open(file.path, "rb") as raw:
        raw.seek(tensor.offset)
        factors = struct.unpack(f"<{tensor.nbytes // 4}f", raw.read(tensor.nbytes))
    base = float(file.metadata["llama.rope.freq_base"])  # type: ignore[arg-type]
    factor, n = max(factors), len(factors)
    for i, said in enumerate(factors):
        turns = 8192 / (2 * math.pi * base ** (i / n))
        kept = min(max((turns - 1) / 3, 0), 1)
        if abs(1 / said - (kept + (1 - kept) / factor)) > 1e-3:
            raise ConfigError(f"{file.path}: {ROPE_FACTORS} holds factors that are not LLaMA 3.1's; no part knows them")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
