"""GGUF metadata as a config: what is inferred from tensors, and what is refused. (Logits: tests/families.)"""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qkv.errors import ConfigError
from qkv.load.ggml import ROPE_FACTORS, gguf_config
from qkv.load.gguf import GgufFile, GgufTensor
from qkv.load.mapped import Identity

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 131072,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.attention.head_count": 4,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.rope.freq_base": 500000.0,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 3,
}
EMBEDDING = GgufTensor("token_embd.weight", (97, 32), "Q8_0", 0, 0)


def header(path: Path, *tensors: GgufTensor, **changes: Any) -> GgufFile:
    metadata = {k: v for k, v in (METADATA | changes).items() if v is not None}
    return GgufFile(path, 3, metadata, {t.name: t for t in tensors}, 32, 0, Identity(0, 0, 0, 0))


def test_the_embedding_says_the_vocabulary_and_a_missing_output_ties(tmp_path: Path) -> None:
    family, config = gguf_config(header(tmp_path, EMBEDDING))
    assert family.name == "llama"
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (97, True)
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 3)
    assert config["rms_norm_eps"] == 1e-5  # not float32's 9.99999974e-06
    _, untied = gguf_config(header(tmp_path, EMBEDDING, replace(EMBEDDING, name="output.weight")))
    assert untied["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.block_count": None}, "block_count"),
        ({"llama.attention.head_count": "4"}, "head_count"),
        ({"general.architecture": "rwkv"}, "rwkv"),
        ({"general.architecture": 7}, "7"),
    ],
)
def test_keys_that_are_wrong_or_unknown_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        gguf_config(header(tmp_path, EMBEDDING, **changes))


def test_a_file_without_an_embedding_is_no_language_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"token_embd\.weight"):
        gguf_config(header(tmp_path))


@pytest.mark.parametrize("last", [8.0, 9.0])
def test_llama_3_scaling_is_known_by_its_factors(tmp_path: Path, last: float) -> None:
    """Wavelengths of base 500,000 over 4 pairs: 6, 167, 4,443 and 118,000 tokens. The third lies on the ramp."""
    turns = 8192 / (2 * 3.141592653589793 * 500000.0**0.5)
    kept = (turns - 1) / 3
    factors = [1.0, 1.0, 1 / (kept + (1 - kept) / 8), last]
    file = tmp_path / "factors"
    file.write_bytes(struct.pack("<4f", *factors))
    tensor = GgufTensor(ROPE_FACTORS, (4,), "F32", 0, 16)
    if last == 8.0:
        _, config = gguf_config(header(file, EMBEDDING, tensor))
        assert config["rope_scaling"]["rope_type"] == "llama3"
        assert config["rope_scaling"]["factor"] == 8.0
    else:
        with pytest.raises(ConfigError, match=r"not LLaMA 3\.1's"):
            gguf_config(header(file, EMBEDDING, tensor))
