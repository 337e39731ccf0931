"""Masks: which keys a query may see, as a rule on positions. Where the keys are stored does not matter to it."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from qkv import spec
from qkv.nn.parts import implements

Plainly = Literal["all", "lower triangle"]


class Mask(ABC):
    """One rule. A new mask overrides `allows`, and `plainly` where a kernel needs no table."""

    def __init__(self, mask: spec.Mask) -> None:
        self.spec = mask

    @abstractmethod
    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions of queries [B, Q, 1] and keys [B, 1, K] → bool [B, Q, K]: may it be seen?"""

    def plainly(self, start: int, length: int) -> Plainly | None:
        """What `allows` comes to for queries start … start+length−1 over all keys 0 … start+length−1 in order:
        everything, the lower triangle, or (None) neither."""
        return None

    def keeps(self) -> int | None:
        """How many keys before and with a query can ever be seen: a cache needs no more (None: all)."""
        return None


@implements(spec.Full)
class Full(Mask):
    """Every key."""

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return torch.ones_like(queries * keys, dtype=torch.bool)

    def plainly(self, start: int, length: int) -> Plainly | None:
        return "all"


@implements(spec.Causal)
class Causal(Mask):
    """Keys at or before the query."""

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return keys <= queries

    def plainly(self, start: int, length: int) -> Plainly | None:
        if length == 1:
            return "all"
        return "lower triangle" if start == 0 else None


@implements(spec.Window)
class Window(Causal):
    """The query's own key and the size − 1 before it."""

    spec: spec.Window

    def allows(self, queries: Tensor, keys: Tensor) -> Tensor:
        return (keys <= queries) & (queries - keys < self.spec.size)

    def plainly(self, start: int, length: int) -> Plainly | None:
        return super().plainly(start, length) if start + length <= self.spec.size else None

    def keeps(self) -> int | None:
        return self.spec.size
