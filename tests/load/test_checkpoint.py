"""A checkpoint's tensors, from a folder and from a GGUF file."""

import json
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qkv.adapt.pack import pack
from qkv.errors import WeightError
from qkv.families.llama import FAMILY
from qkv.kernels.dequantize import dequantize
from qkv.load.checkpoint import FolderCheckpoint, GgufCheckpoint, Renamed, open_checkpoint
from qkv.load.describe import describe
from qkv.load.gguf import read_gguf
from qkv.load.safetensors import read_header
from qkv.load.scheme import Scheme


def test_a_folder_gives_tensors_as_they_are_stored(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**FAMILY.tiny, "model_type": "llama"}))
    checkpoint = open_checkpoint(describe(tmp_path, config_only=False))
    assert isinstance(checkpoint, FolderCheckpoint)
    assert checkpoint.where == str(tmp_path)
    assert checkpoint.shapes() == {"a": (2, 3), "b": (4,)}
    assert checkpoint.kinds == {"a": "F32", "b": "BF16"}
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), tensor)


def test_a_folder_of_packed_matrices_gives_them_either_way() -> None:
    weights = torch.randn(4, 64)
    tensors = {"a": pack(weights, "Q4_1"), "b": pack(weights, "Q8_0"), "c": torch.ones(4)}
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/x.safetensors", {"format": "pt"})
        header = read_header(f"{folder}/x.safetensors")
        found = FolderCheckpoint("here", [header], Scheme("int4", {"b": "int8"}), torch.bfloat16, {"Q4_1"})
        assert found.kinds == {"a": "Q4_1", "b": "Q8_0", "c": "F32"}
        assert found.shapes() == {"a": (4, 64), "b": (4, 64), "c": (4,)}
        assert [found.by_output(name) for name in "abc"] == [True, True, False]
        kept = found.packed("a")
        assert kept is not None
        assert kept[1] == "Q4_1"
        assert torch.equal(kept[0], tensors["a"])
        assert found.packed("b") is None  # not of the types that are kept
        assert found.packed("c") is None
        for name, kind in (("a", "Q4_1"), ("b", "Q8_0")):
            plain = dequantize(tensors[name].view(-1), kind, (4, 64), torch.bfloat16)
            assert torch.equal(found.read(name), plain)
        assert torch.equal(found.read("c"), tensors["c"])
        again = Renamed(found, {"new": "a", "c": "c"})
        assert (again.by_output("new"), again.by_output("c"), again.by_output("other")) == (True, False, False)
        with pytest.raises(WeightError, match="here: a, b hold bytes"):
            FolderCheckpoint("here", [header])


def test_a_gguf_file_gives_packed_tensors_in_the_dtype_asked_and_float32_as_it_is(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    weights = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("plain", weights)
    writer.add_tensor("rope_freqs.weight", weights[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = GgufCheckpoint(read_gguf(tmp_path / "x.gguf"), torch.bfloat16)
    assert checkpoint.shapes() == {"packed": (2, 32), "plain": (2, 32)}  # the factors are read as part of the config
    assert checkpoint.kinds == {"packed": "Q8_0", "plain": "F32"}
    assert checkpoint.read("packed").dtype == torch.bfloat16
    torch.testing.assert_close(checkpoint.read("packed").float(), torch.from_numpy(weights), atol=0.02, rtol=0)
    assert torch.equal(checkpoint.read("plain"), torch.from_numpy(weights))
