"""A packed weight does what a plain one does, whatever path it takes."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import TYPES
from qkv.nn.linear import Embedding, Linear
from qkv.nn.packed import Packed, named_weights, plain
from tests.kernels.test_dequantize import random_blocks


def packed(kind: str = "Q4_1", rows: int = 70, blocks: int = 6) -> Packed:
    return Packed(torch.from_numpy(random_blocks(kind, rows, blocks, 1)).view(rows, -1), kind)


def linear(weight: Packed, bias: bool = False) -> Linear:
    out = Linear(weight.K, weight.shape[0], bias=bias)
    del out.weight
    out.weight = weight
    return out


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("rows", [1, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_path_is_close_to_the_reference(kind: str, rows: int, dtype: torch.dtype) -> None:
    layer = linear(packed(kind), bias=True).to(dtype)
    x = torch.randn(rows, layer.weight.K).to(dtype)
    with torch.no_grad():
        y, exact = layer(x), layer.weight.reference(x.float()) + layer.bias.float()
    assert (y.dtype, y.shape) == (dtype, exact.shape)
    assert (y.float() - exact).norm() / exact.norm() < 0.02


def test_leading_sizes_and_strides() -> None:
    weight = packed()
    x = torch.randn(2, 3, weight.K)
    whole = F.linear(x, weight)
    assert whole.shape == (2, 3, 70)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(F.linear(turned, weight), whole)
    assert F.linear(x[:0], weight).shape == (0, 3, 70)
    with pytest.raises(RuntimeError):
        F.linear(torch.randn(1, weight.K // 2), weight)
    with pytest.raises(RuntimeError):
        F.linear(torch.randn(2, weight.K // 2), weight)


def test_rows_of_a_table() -> None:
    table = Embedding(70, 192)
    del table.weight
    table.weight = packed()
    ids = torch.tensor([[0, 69, 3], [3, 3, 1]])
    assert torch.equal(table(ids), table.weight.dequantize()[ids])
    assert table.bfloat16()(ids).dtype == torch.bfloat16
    for bad in (70, -1):
        with pytest.raises(IndexError, match="70 rows"):
            table(torch.tensor([bad]))


def test_a_gradient_goes_to_x() -> None:
    weight, x = packed(), torch.randn(2, 192, requires_grad=True)
    F.linear(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.dequantize().sum(0).expand(2, -1))


def test_other_functions_refuse_it() -> None:
    with pytest.raises(TypeError, match=r"matmul can't take a packed weight: .*dequantize"):
        torch.matmul(torch.randn(2, 192), packed())
    with pytest.raises(ValueError, match="Q4_1 needs uint8 rows of 20-byte blocks"):
        Packed(torch.zeros(2, 19, dtype=torch.uint8), "Q4_1")


def test_it_is_copied_moved_and_stored_like_a_part() -> None:
    layer = linear(packed(), bias=True)
    x = torch.randn(1, 192)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.to("cpu")):
        torch.testing.assert_close(other(x), expected)
    assert copy.deepcopy(layer).weight.held.data_ptr() != layer.weight.held.data_ptr()
    assert set(layer.state_dict()) == {"weight.blocks", "bias"}
    other = linear(Packed(torch.zeros_like(layer.weight.blocks), "Q4_1"), bias=True)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), expected)
    assert set(named_weights(layer)) == {"weight", "bias"}
    assert torch.equal(plain(named_weights(layer)["weight"]), layer.weight.dequantize())
    # of tiles of 16 rows
    assert layer.weight.nbytes == (80 * 192 * 20 // 32 if layer.weight.tiled else layer.weight.numel() * 20 // 32)


def test_it_moves_to_another_device_whole() -> None:
    weight = packed().to("meta")
    assert (weight.device.type, weight.dtype, weight.shape) == ("meta", torch.float32, (70, 192))


@pytest.mark.parametrize("kind", [*TYPES, "Q5_0", "Q5_1"])
@pytest.mark.parametrize("rows", [1, 16, 70])
def test_its_bytes_are_the_file_s(kind: str, rows: int) -> None:
    raw = torch.from_numpy(random_blocks(kind, rows, 2, 3))
    weight = Packed(raw, kind)
    assert weight.tiled is (kind in TYPES)
    changed = linear(weight).to(torch.bfloat16).weight
    for other in (weight, changed, copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(other.blocks, raw)
        assert other.state_dict().keys() == {"blocks"}
    assert changed.dtype == torch.bfloat16
    assert pickle.loads(pickle.dumps(changed)).dtype == copy.deepcopy(changed).dtype == torch.bfloat16
    assert torch.equal(weight.dequantize(), dequantize(raw.view(-1), kind, tuple(weight.shape)))


def test_what_does_not_fit_is_said_when_it_is_loaded() -> None:
    weight = packed()
    before = weight.blocks
    with pytest.raises(RuntimeError, match="blocks"):
        weight.load_state_dict({})
    for wrong in (torch.zeros(69, 120, dtype=torch.uint8), torch.zeros(70, 120)):
        with pytest.raises(RuntimeError, match=r"blocks: expected uint8 \[70, 120\]"):
            weight.load_state_dict({"blocks": wrong})
    with pytest.raises(RuntimeError, match="more"):
        weight.load_state_dict({"blocks": before, "more": before})
    assert torch.equal(weight.blocks, before)
    weight.load_state_dict({"blocks": torch.zeros_like(before)})
    assert not F.linear(torch.ones(1, 192), weight).any()


def test_a_compiler_sees_one_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = packed(), torch.randn(3, 192)
    eager = F.linear(x, weight)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(F.linear(x, weight), eager)
