"""Heads: what is read off the last states."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkv import spec
from qkv.nn.linear import fresh
from qkv.nn.parts import implements


@implements(spec.LMHead)
class LMHead(nn.Module):
    """Logits over the vocabulary, with the embedding's matrix (tied, arXiv 1608.05859) or one of its own."""

    def __init__(self, head: spec.LMHead, vocab: int, dim: int) -> None:
        super().__init__()
        self.softcap = head.softcap
        self.weight = None if head.tied else fresh(vocab, dim)
        self.bias = nn.Parameter(torch.zeros(vocab)) if head.bias else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [T, C] and the embedding's table [V, C] → logits [T, V]."""
        logits = F.linear(x, embedding if self.weight is None else self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
