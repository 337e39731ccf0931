"""Packing: every weight within half a step, never worse than min–max, and the layout is ggml's."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from qkv.adapt.pack import GROUP, LARGEST, min_max, one_thread, pack
from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize

SINGLE = np.float32
SMALLEST = 2.0**-24  # of 16-bit floats: no step is finer


def unpacked(weight: Tensor, kind: str) -> Tensor:
    return dequantize(pack(weight, kind).view(-1), kind, tuple(weight.shape))


def halves(weight: Tensor, kind: str, at: int) -> Tensor:
    """A 16-bit field of every block: [groups, 1]."""
    blocks = pack(weight, kind).view(-1, BLOCKS[kind].nbytes)
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def rounding(x: Tensor) -> Tensor:
    """What float32 itself may be off by in d·q + m; a 127th of its very smallest numbers is 0."""
    return x.abs().amax(1, keepdim=True) * 2**-22 + 2.0**-142


TINIEST = np.zeros((2, GROUP), np.float32)
TINIEST[0, 0] = SINGLE(1e-45)
group = arrays.arrays(
    np.float32,
    (2, GROUP),
    elements=st.one_of(
        st.floats(-1, 1, width=32),
        st.floats(-LARGEST, LARGEST, width=32),
        st.floats(-(2.0**-20), 2.0**-20, width=32),
        st.sampled_from([0.0, -0.0, 1.0, SINGLE(1e-45), -SINGLE(1e-40), SMALLEST, LARGEST, -LARGEST, SINGLE(1000.3)]),
    ),
    fill=st.sampled_from([0.0, 0.25, SINGLE(-3.7), SINGLE(1000.3), SINGLE(1e-41), LARGEST]),
)


@given(values=group)
def test_four_bits_move_no_weight_further_than_half_a_step(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    step, low = (y[:, None] for y in min_max(x.T.contiguous()))
    assert bool((low <= x).all())
    assert bool((low + 15 * step >= x - rounding(x)).all())
    off = (unpacked(x, "Q4_1") - x).abs()
    assert bool((off <= step / 2 + rounding(x)).all())


@given(values=group)
def test_four_bits_are_never_worse_than_min_max(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    d, m = (y[:, None].double() for y in min_max(x.T.contiguous()))
    steps = ((x.double() - m) / torch.where(d > 0, d, 1.0)).round().clamp(0, 15)
    plain = (steps * d + m - x.double()).square().sum(1)
    ours = (unpacked(x, "Q4_1").double() - x.double()).square().sum(1)
    assert bool((ours <= plain * (1 + 1e-4) + rounding(x)[:, 0].double().square() * GROUP).all())


@given(values=group)
@example(values=TINIEST)
def test_eight_bits_move_no_weight_further_than_half_a_step(values: np.ndarray) -> None:
    x = torch.from_numpy(values)
    d = halves(x, "Q8_0", 0)
    assert bool((d <= x.abs().amax(1, keepdim=True) / 127 * 1.001 + SMALLEST).all())
    assert bool(((unpacked(x, "Q8_0") - x).abs() <= d / 2 + rounding(x)).all())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("value", [0.0, -0.0, 0.5, -3.7, 1000.3, 1e-30, 1e-45, LARGEST, -LARGEST])
def test_a_constant_group(kind: str, value: float) -> None:
    x = torch.full((3, 64), value)
    near = unpacked(x, kind)
    assert float((near - x).abs().max()) <= max(abs(value) / 254, SMALLEST / 2)
    if kind == "Q4_1":  # the minimum takes the value, and the steps what 16 bits cut off it
        assert float((near - x).abs().max()) <= abs(value) * 2**-14 + SMALLEST / 2
    if value == 0:
        assert not pack(x, kind).any() or torch.equal(near, torch.zeros_like(x))


DRAWN = {
    "normal": torch.distributions.Normal(0.0, 0.02),
    "heavy tails": torch.distributions.StudentT(3.0, 0.0, 0.02),
    "even": torch.distributions.Uniform(-0.1, 0.3),
    "with a mean": torch.distributions.Normal(0.5, 0.02),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_matrix_is_nearer_than_ggml_has_it(name: str) -> None:
    """The gguf package rounds min–max; the search must pay for itself by more than chance."""
    x = DRAWN[name].sample((256, 512))
    for kind, share in (("Q4_1", 0.95), ("Q8_0", 1.001)):
        number = gguf.GGMLQuantizationType[kind]
        theirs = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(x.numpy(), number), number))
        assert float((unpacked(x, kind) - x).norm()) < share * float((theirs - x).norm())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_the_layout_is_ggmls(kind: str) -> None:
    x = torch.randn(7, 96)
    raw = pack(x, kind)
    assert raw.shape == (7, 3 * BLOCKS[kind].nbytes)
    theirs = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    assert torch.equal(torch.from_numpy(theirs), unpacked(x, kind))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_what_was_packed_is_packed_to_the_same_again(kind: str) -> None:
    once = unpacked(torch.randn(16, 256), kind)
    torch.testing.assert_close(unpacked(once, kind), once, atol=2e-3 if kind == "Q4_1" else 1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_chunks_dtypes_and_strides_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 64).bfloat16()
    whole = pack(x, kind)
    assert torch.equal(pack(x.float(), kind), whole)
    assert torch.equal(pack(x.T.contiguous().T, kind), whole)
    assert torch.equal(pack(torch.nn.Parameter(x.float()), kind), whole)
    monkeypatch.setattr("qkv.adapt.pack._CHUNK", 64 * 7)
    assert torch.equal(pack(x, kind), whole)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.get_num_threads() == before
