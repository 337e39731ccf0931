"""MLPs: what each token does alone."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkv import spec
from qkv.nn.linear import Linear, rounded_once
from qkv.nn.parts import implements


def relu2(x: Tensor) -> Tensor:
    """relu(x)² (Primer, arXiv 2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu2": relu2,
    "tanh": torch.tanh,
}


@implements(spec.Plain)
class Plain(nn.Module):
    """W₂ σ(W₁ x)."""

    def __init__(self, mlp: spec.Plain, dim: int) -> None:
        super().__init__()
        self.spec, self.activation = mlp, ACTIVATIONS[mlp.activation]
        self.up = Linear(dim, mlp.width, bias=mlp.bias)
        self.down = Linear(mlp.width, dim, bias=mlp.bias)
        self.dropout = nn.Dropout(mlp.dropout) if mlp.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x))))  # type: ignore[no-any-return]


@implements(spec.Gated)
class Gated(nn.Module):
    """W_down (σ(W_gate x) ⊙ W_up x) (arXiv 2002.05202)."""

    def __init__(self, mlp: spec.Gated, dim: int) -> None:
        super().__init__()
        self.spec, self.activation = mlp, ACTIVATIONS[mlp.activation]
        self.gate = Linear(dim, mlp.width, bias=mlp.bias)
        self.up = Linear(dim, mlp.width, bias=mlp.bias)
        self.down = Linear(mlp.width, dim, bias=mlp.bias)
        self.dropout = nn.Dropout(mlp.dropout) if mlp.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = rounded_once(x)
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))  # type: ignore[no-any-return]
