"""Matrices with fresh weights: normal with deviation 0.02, biases zero (GPT-2). On the meta device, where a model waits
for its checkpoint, nothing is drawn: torch's random kernels for it would first import a whole compiler (2 s)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 64  # of a product that is learned in few bits on a CPU: oneDNN prepares, and keeps, code for each other number


def fresh(*shape: int, std: float = 0.02) -> nn.Parameter:
    """A parameter of this shape."""
    return nn.Parameter(_drawn(torch.empty(*shape), std))


def _drawn(x: Tensor, std: float) -> Tensor:
    return x if x.is_meta else nn.init.normal_(x, std=std)


def rounded_once(x: Tensor) -> Tensor:
    """x for several products: in autocast's dtype, to which each of them would else round it for itself."""
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def filled(x: Tensor) -> Tensor:
    """x [T, C], where a product with it is learned in autocast on a CPU, with rows of zeros up to whole ROWS."""
    learned = x.ndim == 2 and torch.is_grad_enabled() and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return F.pad(rounded_once(x), (0, 0, 0, -len(x) % ROWS)) if learned and len(x) % ROWS else x


class Linear(nn.Linear):
    """y = x Wᵀ + b."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(filled(x))
        return y[: len(x)] if len(y) > len(x) else y

    def reset_parameters(self) -> None:
        _drawn(self.weight, 0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A row for each id."""

    def reset_parameters(self) -> None:
        _drawn(self.weight, 0.02)
