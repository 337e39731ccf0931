"""The norms are torch's and transformers', down to the rounding in bfloat16."""

import pytest
import torch

from qkv import spec
from qkv.nn.parts import build

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def both(own: torch.nn.Module, theirs: torch.nn.Module, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        for mine, other in zip(own.parameters(), theirs.parameters(), strict=True):
            mine.copy_(torch.randn_like(mine))
            other.copy_(mine)
        x = (torch.randn(7, 24) * 3 + 1).to(dtype)
        return own.to(dtype)(x), theirs.to(dtype)(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(dtype: torch.dtype, bias: bool) -> None:
    own, theirs = both(build(spec.LayerNorm(1e-3, bias), 24), torch.nn.LayerNorm(24, 1e-3, bias=bias), dtype)
    assert torch.equal(own, theirs)


def test_layer_norm_is_its_equation() -> None:
    norm, x = build(spec.LayerNorm(0.1), 24), torch.randn(7, 24)
    with torch.no_grad():
        norm.weight.fill_(2.0), norm.bias.fill_(3.0)
    expected = (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 0.1).sqrt() * 2 + 3
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_rounds_as_llama(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    own, theirs = both(build(spec.RMS(1e-3), 24), LlamaRMSNorm(24, 1e-3), dtype)
    assert own.dtype == dtype
    torch.testing.assert_close(own, theirs, atol=1e-6 if dtype == torch.float32 else 0, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_plus_rounds_as_gemma(dtype: torch.dtype) -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

    own, theirs = both(build(spec.RMS(1e-3, one_plus=True), 24), GemmaRMSNorm(24, 1e-3), dtype)
    assert own.dtype == dtype
    torch.testing.assert_close(own, theirs, atol=1e-6 if dtype == torch.float32 else 0, rtol=0)


@pytest.mark.parametrize("value", [spec.LayerNorm(), spec.RMS(), spec.RMS(one_plus=True)], ids=repr)
def test_a_fresh_norm_only_scales(value: spec.Norm) -> None:
    out = build(value, 24)(torch.randn(7, 24) * 5)
    torch.testing.assert_close(out.square().mean(-1), torch.ones(7), atol=1e-4, rtol=0)


def test_rms_has_the_gradient_of_its_equation() -> None:
    norm, x = build(spec.RMS(0.1), 24), torch.randn(3, 5, 24, requires_grad=True)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(24))
    given = torch.randn(3, 5, 24)
    equation = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), equation)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), equation)
    found, wanted = (torch.autograd.grad(out, [x, norm.weight], given) for out in (norm(x), equation))
    torch.testing.assert_close(found, wanted)
