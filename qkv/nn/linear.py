"""Matrices with fresh weights: normal with deviation 0.02, biases zero (GPT-2). On the meta device, where a model waits
for its checkpoint, nothing is drawn: torch's random kernels for it would first import a whole compiler (2 s)."""

import torch
from torch import nn


def fresh(*shape: int, std: float = 0.02) -> nn.Parameter:
    """A parameter of this shape."""
    return nn.Parameter(_drawn(torch.empty(*shape), std))


def _drawn(x: torch.Tensor, std: float) -> torch.Tensor:
    return x if x.is_meta else nn.init.normal_(x, std=std)


def rounded_once(x: torch.Tensor) -> torch.Tensor:
    """x for several products: in autocast's dtype, to which each of them would else round it for itself."""
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


class Linear(nn.Linear):
    """y = x Wᵀ + b."""

    def reset_parameters(self) -> None:
        _drawn(self.weight, 0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A row for each id."""

    def reset_parameters(self) -> None:
        _drawn(self.weight, 0.02)
