"""Rotary settings, written and read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.families.rope import read_rotary, write_rotary
from qkv.spec import Alibi, DynamicNTKScaling, LinearScaling, Llama3Scaling, Rotary, Scaling, Yarn

factors = st.floats(1.0, 64.0)
lengths = st.integers(1, 2**20)
yarns = st.builds(
    Yarn,
    factors,
    length=lengths,
    fast=st.floats(1.0, 64.0),
    slow=st.floats(0.1, 0.9),
    attention=st.none() | st.floats(0.5, 2.0),
    truncate=st.booleans(),
)
scalings: st.SearchStrategy[Scaling | None] = st.one_of(
    st.none(),
    st.builds(LinearScaling, factors),
    st.builds(DynamicNTKScaling, factors, length=st.just(2048)),
    st.builds(Llama3Scaling, factors, low=st.floats(0.5, 2.0), high=st.floats(3.0, 8.0), length=lengths),
    yarns,
)


@given(
    head_dim=st.integers(2, 512), half=st.integers(1, 256), base=st.floats(2.0, 1e9), scaling=scalings,
    new=st.booleans(),
)  # fmt: skip
def test_what_is_written_is_read(head_dim: int, half: int, base: float, scaling: Scaling | None, new: bool) -> None:
    dims = min(2 * half, head_dim // 2 * 2)
    position = Rotary(base=base, dims=None if dims == head_dim else dims, scaling=scaling)
    written: dict[str, Any] = write_rotary(position, head_dim, part="rotary_pct")
    if new:  # as transformers 5 puts it
        inner = {"rope_theta": written["rope_theta"], "partial_rotary_factor": written["rotary_pct"]}
        written = {"rope_parameters": {"rope_type": "default", **inner, **(written["rope_scaling"] or {})}}
    reader = Reader(written, "test")
    assert read_rotary(reader, head_dim, 2048, part="rotary_pct") == position
    reader.done()


def test_yarn_reads_the_attention_factor_of_deepseek() -> None:
    scaling = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707}
    read = read_rotary(Reader({"rope_scaling": scaling}, "test"), 64, 4096)
    assert isinstance(read.scaling, Yarn)
    assert read.scaling.attention == pytest.approx((0.1 * 3.68888 + 1) / (0.0707 * 3.68888 + 1), rel=1e-5)
    assert read.scaling.length == 4096


def test_a_base_inside_wins_over_one_outside() -> None:
    config = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "default", "rope_theta": 700.0}}
    assert read_rotary(Reader(config, "test"), 8, 64).base == 700.0


def test_other_positions_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="Alibi can't be written as rotary"):
        write_rotary(Alibi(), 8)
