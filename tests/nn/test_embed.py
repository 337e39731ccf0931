"""Token vectors."""

import pytest
import torch

from qkv import spec
from qkv.errors import InputError
from qkv.nn import embed, norm, position  # noqa: F401  (importing registers their parts)
from qkv.nn.batch import Batch
from qkv.nn.parts import build

IDS = torch.tensor([3, 0, 3])
BATCH = Batch([2, 1], [0, 4], torch.device("cpu"))


def test_a_row_for_each_id() -> None:
    part = build(spec.Embed(), 5, 8)
    assert torch.equal(part(IDS, BATCH), part.tokens.weight[IDS])


def test_scale_position_norm_in_this_order() -> None:
    part = build(spec.Embed(spec.Learned(9), scale=3.0, norm=spec.LayerNorm()), 5, 8)
    expected = part.norm(part.tokens.weight[IDS] * 3 + part.position.weight[[0, 1, 4]])
    torch.testing.assert_close(part(IDS, BATCH), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scale_is_rounded_to_the_weights_precision_as_gemmas(dtype: torch.dtype) -> None:
    part = build(spec.Embed(scale=3072**0.5), 5, 8).to(dtype)
    rounded = torch.tensor(3072**0.5, dtype=dtype).item()
    assert (rounded == 55.5) == (dtype == torch.bfloat16)
    assert torch.equal(part(IDS, BATCH), part.tokens.weight[IDS] * rounded)


def test_positions_keep_the_weights_precision() -> None:
    part = build(spec.Embed(spec.Sinusoidal()), 5, 8).to(torch.bfloat16)
    assert part(IDS, BATCH).dtype == torch.bfloat16


def test_dropout_in_training_only() -> None:
    part = build(spec.Embed(dropout=1.0), 5, 8)
    assert not part.train()(IDS, BATCH).any()
    assert part.eval()(IDS, BATCH).any()


def test_segments_are_added() -> None:
    part = build(spec.Embed(spec.Learned(9), norm=spec.LayerNorm(), segments=2), 5, 8)
    plain = part.tokens.weight[IDS] + part.position.weight[[0, 1, 4]]
    torch.testing.assert_close(part(IDS, BATCH), part.norm(plain + part.segment.weight[0]))
    kinds = Batch([2, 1], [0, 4], torch.device("cpu"), segments=torch.tensor([0, 1, 1]))
    torch.testing.assert_close(part(IDS, kinds), part.norm(plain + part.segment.weight[[0, 1, 1]]))


def test_a_segment_that_is_not_there() -> None:
    part = build(spec.Embed(segments=2), 5, 8)
    with pytest.raises(InputError, match=r"segments must be 0 to 1, got \[0, 2\]"):
        part(IDS, Batch([2, 1], [0, 4], torch.device("cpu"), segments=torch.tensor([0, 2, 0])))


def test_a_narrow_table_and_a_matrix_to_the_models_width() -> None:
    part = build(spec.Embed(spec.Learned(9), norm=spec.LayerNorm(), segments=1, width=3), 5, 8)
    x = part.norm(part.tokens.weight[IDS] + part.segment.weight[0] + part.position.weight[[0, 1, 4]])
    assert x.shape == (3, 3)
    torch.testing.assert_close(part(IDS, BATCH), x @ part.project.weight.T + part.project.bias)
