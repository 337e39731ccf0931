"""Every kernel bit for bit against the gguf package's, on random blocks, extreme scales and zeros."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qkv.kernels.dequantize
from qkv.errors import WeightError
from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import KERNELS, dequantize
from qkv.load.gguf import read_gguf

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Where each block's half-precision fields start: random bytes there would mostly be NaN or of one size.
HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip
EXTREME = [0.0, -0.0, 2**-24, -(2**-24), 2**-14, 1.0, -1.0, 65504.0, -65504.0, np.inf, -np.inf, np.nan]


def reference(raw: np.ndarray, type: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type])


def assert_bits(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal to the bit, the sign of zero included; a NaN equals any NaN."""
    a, b = ours.numpy(), theirs
    assert a.dtype == b.dtype == np.float32
    assert np.array_equal(np.isnan(a), np.isnan(b))
    assert np.array_equal(a.view(np.uint32)[~np.isnan(a)], b.view(np.uint32)[~np.isnan(b)])


def random_blocks(type: str, rows: int, blocks: int, seed: int, scale: float | None = None) -> np.ndarray:
    """uint8 `[rows, blocks of a row · bytes]`, every byte random but the scales: normal, or `scale`."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (rows, blocks, BLOCKS[type].nbytes), dtype=np.uint8)
    for at in HALVES.get(type, []):
        values = generator.standard_normal((rows, blocks, 1)) if scale is None else np.full((rows, blocks, 1), scale)
        raw[:, :, at : at + 2] = values.astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("type", KERNELS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_random_blocks(type: str, rows: int, blocks: int, seed: int) -> None:
    raw = random_blocks(type, rows, blocks, seed)
    ours = dequantize(torch.from_numpy(raw).view(-1), type, (rows, blocks * BLOCKS[type].weights))
    assert_bits(ours, reference(raw, type))


@pytest.mark.parametrize("scale", EXTREME)
@pytest.mark.parametrize("type", KERNELS)
def test_extreme_scales(type: str, scale: float) -> None:
    raw = random_blocks(type, 3, 2, 1, scale)
    ours = dequantize(torch.from_numpy(raw).view(-1), type, (3, 2 * BLOCKS[type].weights))
    assert_bits(ours, reference(raw, type))


@pytest.mark.parametrize("type", KERNELS)
def test_any_bytes_and_zero_bytes(type: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (2, 64 * BLOCKS[type].nbytes), dtype=np.uint8)
    for blocks in (raw, np.zeros_like(raw), np.full_like(raw, 255)):
        ours = dequantize(torch.from_numpy(blocks).view(-1), type, (2, 64 * BLOCKS[type].weights))
        assert_bits(ours, reference(blocks, type))


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_real_weights_come_back_within_a_step(type: str) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    raw = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[type])
    ours = dequantize(torch.from_numpy(raw).view(-1), type, (4, 128)).numpy()
    step = np.abs(weights).max() / {"Q8_0": 127, "Q4_0": 8, "Q4_1": 7, "Q5_0": 16, "Q5_1": 15}[type]
    assert np.abs(ours - weights).max() <= step


@pytest.mark.parametrize("type", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_parts_of_a_chunk(type: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qkv.kernels.dequantize, "_CHUNK", 1024)
    raw = torch.from_numpy(random_blocks(type, 9, 5, 2)).view(-1)
    shape = (3, 3, 5 * BLOCKS[type].weights)
    ours = dequantize(raw, type, shape, dtype)
    assert (ours.dtype, ours.shape) == (dtype, shape)
    expected = torch.from_numpy(reference(raw.numpy(), type)).view(shape)
    assert torch.equal(ours, expected.to(dtype))


def test_torch_s_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        dequantize(torch.zeros(18, dtype=torch.uint8), "Q4_0", (32,))
        with ThreadPoolExecutor(1) as pool:
            assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (3, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("type", KERNELS)
def test_another_default_device_changes_nothing(type: str) -> None:
    raw = torch.from_numpy(random_blocks(type, 1, 2, 5)).view(-1)
    with torch.device("meta"):
        ours = dequantize(raw, type, (2, BLOCKS[type].weights))
    assert_bits(ours, reference(raw.numpy(), type).reshape(2, -1))


@pytest.mark.parametrize("type", ["Q4_1", "Q6_K", "F32"])
def test_raw_bytes_at_any_address(type: str) -> None:
    raw = random_blocks(type, 1, 4, 3).ravel()
    expected = dequantize(torch.from_numpy(raw), type, (4 * BLOCKS[type].weights,))
    shifted = torch.from_numpy(np.concatenate([[7], raw]).astype(np.uint8))
    assert_bits(dequantize(shifted[1:], type, expected.shape), expected.numpy())


@pytest.mark.parametrize("type", PLAIN)
def test_plain_types(type: str) -> None:
    values = torch.tensor([[0.5, -2.0, 1e-5], [float("inf"), -0.0, 3e4]], dtype=PLAIN[type])
    raw = values.view(-1).view(torch.uint8)
    same = dequantize(raw, type, (2, 3), PLAIN[type])
    assert same.data_ptr() == raw.data_ptr()
    assert torch.equal(dequantize(raw, type, (2, 3)), values.float())
    assert dequantize(raw[: values.element_size()], type, ()).item() == 0.5


@pytest.mark.parametrize("type", ["Q2_K", "Q3_K", "IQ4_NL", "MXFP4", "I32"])
def test_other_types_are_refused_by_name(type: str) -> None:
    with pytest.raises(WeightError, match=rf"{type} is not supported: qkv reads F32, .*Q4_1, .*Q6_K"):
        dequantize(torch.zeros(BLOCKS[type].nbytes, dtype=torch.uint8), type, (BLOCKS[type].weights,))


@pytest.mark.parametrize(("nbytes", "shape"), [(17, (32,)), (19, (32,)), (36, (32,)), (18, (31,)), (18, (2, 32))])
def test_bytes_and_shape_must_fit(nbytes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightError, match=rf"{nbytes} bytes of Q4_0"):
        dequantize(torch.zeros(nbytes, dtype=torch.uint8), "Q4_0", shape)


def test_a_file_s_tensors(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    raw = {type: random_blocks(type, 2, 3, 4) for type in KERNELS}
    for type, blocks in raw.items():
        writer.add_tensor(type, blocks, raw_dtype=gguf.GGMLQuantizationType[type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    for type, blocks in raw.items():
        assert file.tensors[type].shape == (2, 3 * BLOCKS[type].weights)
        assert_bits(file.read(type), reference(blocks, type))
    assert file.read("Q8_0", torch.bfloat16).dtype == torch.bfloat16
