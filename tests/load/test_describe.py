"""What a reference holds, from its config or header alone."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from qkv.errors import ConfigError, CorruptFile, NotFound
from qkv.families.llama import FAMILY
from qkv.load.describe import describe
from qkv.load.scheme import Scheme


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {**FAMILY.tiny, "model_type": "llama", "eos_token_id": [2, 5], "bos_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_scheme_is_read_apart_from_the_config(folder: Path) -> None:
    said = {"quant_method": "qkv", "scheme": "int8", "bits": 8, "group_size": 32, "exceptions": {}}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    for ref in (folder, folder / "config.json"):
        described = describe(ref)
        assert described.scheme == Scheme("int8")
        assert described.packed
        assert "quantization_config" not in described.config
        assert described.stored() == {}  # there are no weights here
    said["quant_method"] = "gptq"
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(ConfigError, match=r"quantization_config is of the method 'gptq'"):
        describe(folder)


def test_a_config_alone_is_enough(folder: Path) -> None:
    for ref in (folder, folder / "config.json"):
        described = describe(ref)
        assert described.spec == FAMILY.spec(FAMILY.tiny)
        assert described.family is FAMILY
        assert described.generation == {"eos_token_id": [2, 5], "bos_token_id": 1}


def test_without_a_generation_config_the_config_speaks(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    said = {"num_beams": 4, "forced_eos_token_id": 2, "temperature": None}
    (folder / "config.json").write_text(json.dumps(config | said))
    found = describe(folder)
    assert found.generation_from == "config.json"
    assert found.generation["num_beams"] == 4
    assert found.generation["forced_eos_token_id"] == 2
    assert "temperature" not in found.generation
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert "num_beams" not in describe(folder).generation


def test_generation_config_is_read_over_the_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "temperature": 0.5}))
    assert describe(folder).generation == {"eos_token_id": 7, "bos_token_id": 1, "temperature": 0.5}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{}", ConfigError, "model_type"),
        ('{"model_type": "unheard"}', ConfigError, "unheard"),
        ('{"model_type": ["llama"]}', ConfigError, "llama"),
        ("[]", CorruptFile, "config.json"),
        ("{", CorruptFile, "config.json"),
    ],
)
def test_a_config_that_is_not_one_is_named(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=said):
        describe(tmp_path)


def test_weights_are_asked_for_only_where_they_are_needed(folder: Path) -> None:
    describe(folder)
    with pytest.raises(NotFound, match="no weights"):
        describe(folder, config_only=False)


def test_a_gguf_file_describes_itself(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((97, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((97, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    described = describe(tmp_path / "tiny.gguf")
    assert described.spec == FAMILY.spec(FAMILY.tiny | {"num_key_value_heads": 2})
    assert (described.generation, described.generation_from) == ({}, "the GGUF file")
    assert described.gguf is not None


def test_no_torch_is_needed(folder: Path) -> None:
    code = (
        "import sys; from qkv.load.describe import describe; describe(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True)
