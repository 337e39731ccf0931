"""Norms: each token's vector on one scale, computed in float32 whatever the weights are."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkv import spec
from qkv.nn.parts import implements


@implements(spec.LayerNorm)
class LayerNorm(nn.Module):
    """(x − mean) / √(var + eps) · w + b (arXiv 1607.06450)."""

    def __init__(self, norm: spec.LayerNorm, dim: int) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@implements(spec.RMS)
class RMSNorm(nn.Module):
    """x / √(mean x² + eps) · w (arXiv 1910.07467). `one_plus` stores w − 1, as Gemma does, and rounds after the
    product; the others round x first and multiply in the weights' own precision, as LLaMA does."""

    def __init__(self, norm: spec.RMS, dim: int) -> None:
        super().__init__()
        self.eps, self.one_plus = norm.eps, norm.one_plus
        self.weight = nn.Parameter(torch.zeros(dim) if norm.one_plus else torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.one_plus:
            return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).type_as(x)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).type_as(x) * self.weight
