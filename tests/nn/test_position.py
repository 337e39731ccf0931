"""Each scheme does what its paper says, and what transformers makes of it."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.nn.batch import Batch
from qkv.nn.parts import build
from qkv.nn.position import Alibi, Relative, RelativeBias, Rotary
from tests.tiny import tiny

CPU = torch.device("cpu")


def text(length: int, start: int = 0) -> Batch:
    return Batch([length], [start], CPU)


# --- added ----------------------------------------------------------------------------------------------------------


def test_sinusoidal_is_the_table_of_the_paper() -> None:
    table = build(spec.Sinusoidal(), 4)(text(2))
    expected = torch.tensor([[0, 1, 0, 1], [0.84147, 0.54030, 0.01, 0.99995]])
    torch.testing.assert_close(table, expected, atol=5e-6, rtol=0)


@given(st.integers(0, 100000), st.integers(1, 9), st.floats(2, 1e6), st.booleans())
def test_sinusoidal_number_by_number(start: int, dim: int, base: float, halves: bool) -> None:
    (row,) = build(spec.Sinusoidal(base, halves), dim)(text(1, start)).tolist()
    angles = [start / base ** (2 * i / dim) for i in range((dim + 1) // 2)]
    if halves:
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
    else:
        expected = [f(a) for a in angles for f in (math.sin, math.cos)]
    assert row == pytest.approx(expected[:dim], abs=1e-5)


def test_learned_rows_stand_behind_the_offset() -> None:
    learned = build(spec.Learned(10, offset=2), 4)
    assert learned.weight.shape == (12, 4)
    batch = Batch([3, 1], [0, 9], CPU)
    assert torch.equal(learned(batch), learned.weight[[2, 3, 4, 11]])
    with pytest.raises(InputError, match=r"11 tokens .* 10 learned positions"):
        learned(Batch([3, 2], [0, 9], CPU))


# --- rotary ---------------------------------------------------------------------------------------------------------


def rotary(dim: int = 16, **how: Any) -> Rotary:
    made = build(spec.Rotary(**how), 1, dim)
    assert isinstance(made, Rotary)
    return made


SCALINGS = [
    None,
    spec.LinearScaling(4.0),
    spec.NTKScaling(4.0),
    spec.DynamicNTKScaling(4.0, length=8),
    spec.Yarn(4.0, length=16),
    spec.Llama3Scaling(8.0, length=16),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [None, 2, 8])
def test_scores_see_only_the_distance(dims: int | None, interleaved: bool, scaling: spec.Scaling | None) -> None:
    scheme = rotary(base=100.0, dims=dims, interleaved=interleaved, scaling=scaling)
    q, k = torch.randn(2, 16)
    length = 24
    turned_q, turned_k = scheme.turn(q.expand(length, 1, 16), k.expand(length, 1, 16), text(length))
    scores = turned_q[:, 0] @ turned_k[:, 0].T
    for distance in range(-length + 1, length):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), atol=1e-5, rtol=1e-5)
    assert scores[0].std() > 1e-3
    n, factor = dims or 16, 0.1 * math.log(4) + 1 if isinstance(scaling, spec.Yarn) else 1.0
    torch.testing.assert_close(turned_q[0, 0, :n], factor * q[:n])
    torch.testing.assert_close(turned_q[:, 0, :n].norm(dim=-1), factor * q[:n].norm().expand(length))
    assert torch.equal(turned_q[:, 0, n:], q[n:].expand(length, -1)), "dimensions beyond dims stay"


@pytest.mark.parametrize("dims", [None, 8])
def test_the_definition(dims: int | None) -> None:
    """A pair is a complex number, turned by e^(i·pos·base^(−2i/dims))."""
    x, n = torch.randn(5, 2, 16, dtype=torch.float64), dims or 16
    turned, _ = rotary(base=100.0, dims=dims, interleaved=True).turn(x, x, text(5, start=3))
    pairs = torch.view_as_complex(x[..., :n].reshape(5, 2, -1, 2))
    angles = torch.arange(3, 8)[:, None] * 100.0 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)
    torch.testing.assert_close(turned, torch.cat((expected, x[..., n:]), -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dims", [None, 8])
def test_interleaved_is_half_split_with_its_numbers_in_another_order(dims: int | None) -> None:
    n = dims or 16
    order = [*range(0, n, 2), *range(1, n, 2), *range(n, 16)]
    x = torch.randn(5, 2, 16)
    pairs, _ = rotary(dims=dims, interleaved=True).turn(x, x, text(5))
    halves, _ = rotary(dims=dims).turn(x[..., order], x, text(5))
    assert torch.equal(pairs[..., order], halves)


def theirs(parameters: dict[str, Any], length: int, q: Tensor, k: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """q [T, H, 16] and k [T, G, 16] of one sequence, turned by transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=length,
        rope_parameters={"rope_theta": 10000.0, **parameters},
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), batch.positions[None])
    turned = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    return turned[0][0].transpose(0, 1), turned[1][0].transpose(0, 1)


@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        (None, {"rope_type": "default"}),
        (spec.LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
        (spec.DynamicNTKScaling(4.0, length=64), {"rope_type": "dynamic", "factor": 4.0}),
        (
            spec.Yarn(4.0, length=32),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        (
            spec.Yarn(8.0, length=2048, fast=16.0, slow=2.0, attention=1.25, truncate=False),
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 2048,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.25,
                "truncate": False,
            },
        ),
        (
            spec.Yarn(0.5, length=32),
            {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 32},
        ),
        (
            spec.Llama3Scaling(8.0, low=1.0, high=4.0, length=64),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ],
    ids=str,
)
def test_scalings_are_those_of_transformers(scaling: spec.Scaling | None, parameters: dict[str, Any]) -> None:
    for batch in (text(20), text(64), text(300)):
        q, k = torch.randn(batch.ends[0], 4, 16), torch.randn(batch.ends[0], 2, 16)
        own = rotary(scaling=scaling).turn(q, k, batch)
        torch.testing.assert_close(own, theirs(parameters, 64, q, k, batch), atol=1e-4, rtol=0)


def test_ntk_is_a_larger_base() -> None:
    scaled = rotary(scaling=spec.NTKScaling(4.0)).table(text(50), torch.float32)
    larger = rotary(base=10000.0 * 4 ** (16 / 14)).table(text(50), torch.float32)
    torch.testing.assert_close(scaled, larger)


def test_one_answer_with_a_single_pair() -> None:
    """Its frequency is 1 whatever the base: NTK can't change it."""
    plain = rotary(dims=2).table(text(50), torch.float32)
    for scaling in (spec.NTKScaling(4.0), spec.DynamicNTKScaling(4.0, length=8)):
        torch.testing.assert_close(rotary(dims=2, scaling=scaling).table(text(50), torch.float32), plain)


def test_dynamic_ntk_goes_by_each_sequence_and_refuses_a_cache_beyond_its_length() -> None:
    scheme = rotary(scaling=spec.DynamicNTKScaling(4.0, length=8))
    both = scheme.table(Batch([5, 20], [0, 0], CPU), torch.float32)
    alone = [scheme.table(text(n), torch.float32) for n in (5, 20)]
    torch.testing.assert_close(both, tuple(torch.cat(pair) for pair in zip(*alone, strict=True)))
    model = tiny(spec.Attention(4, 2, position=spec.Rotary(scaling=spec.DynamicNTKScaling(4.0, length=8))))
    cache = model.new_cache()
    model([[1] * 8], cache=cache)
    with pytest.raises(InputError, match=r"past 8 tokens.*the sequence has 9"):
        model([[1]], cache=cache)
    model([[1] * 9], cache=model.new_cache())


# --- biases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", range(1, 21))
def test_slopes_are_those_of_bloom(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 9, dtype=torch.long), heads, torch.float32)[:, 0]
    own = build(spec.Alibi(), heads, 8).bias(text(1, start=8), torch.arange(9)[None])
    torch.testing.assert_close(own[0, :, 0] - own[0, :, 0, :1], theirs)
    assert Alibi.slopes(heads)[0] == pytest.approx(own[0, 0, 0, 7] * -1)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 20), (8, 6), (64, 300), (4, 3), (7, 11), (36, 50)])
def test_buckets_are_those_of_t5(buckets: int, distance: int, both_ways: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    apart = torch.arange(-300, 301)
    scheme = build(spec.RelativeBias(buckets, distance, both_ways), 2, 8)
    theirs = T5Attention._relative_position_bucket(apart, both_ways, buckets, distance)
    assert torch.equal(scheme.buckets(apart), theirs)


def test_a_relative_bias_is_looked_up_by_head() -> None:
    scheme = build(spec.RelativeBias(8, 6), 3, 8)
    assert isinstance(scheme, RelativeBias)
    bias = scheme.bias(Batch([2, 2], [0, 4], CPU), torch.arange(6)[None].expand(2, -1))
    assert bias.shape == (2, 3, 2, 6)
    assert torch.equal(bias[1, :, 1, 3], scheme.weight[scheme.buckets(torch.tensor(3 - 5))])


def test_distances_that_leave_no_bucket_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"RelativeBias\.distance must be above the 4"):
        spec.RelativeBias(buckets=8, distance=4)
    spec.RelativeBias(buckets=8, distance=4, both_ways=True)


def test_no_scheme_does_nothing() -> None:
    q, k = torch.randn(2, 3, 1, 8)
    turned = Relative().turn(q, k, text(3))
    assert turned[0] is q
    assert turned[1] is k
    assert Relative().bias(text(3), torch.arange(3)[None]) is None
