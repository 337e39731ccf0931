"""A moving average of the trained weights, for evaluation and export (Polyak & Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qkv.errors import ConfigError, CorruptFile

_UPDATES = "/updates"  # no parameter has this name


class Ema:
    """avg ← d · avg + (1 − d) · weights after each step, in float32, beginning with the weights as they are.

    d is `decay`, and less in the first steps, (1 + n) / (10 + n) at the n-th (TensorFlow's ExponentialMovingAverage),
    so that a short run's average isn't mostly what it began with. Over the parameters that require a gradient, tied
    ones once; DTensors stay DTensors. ConfigError: weights that are not float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, p in self.weights.items():
            if p.dtype != torch.float32:
                raise ConfigError(f"train.ema: {name} is {p.dtype}; an average is kept of float32 weights only")
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}
        self._updates = torch.zeros((), dtype=torch.int64)
        self._swapped = False

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights in, after an optimizer's step."""
        assert not self._swapped
        self._updates += 1
        n = self._updates.item()
        share = 1 - min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights.values()], share)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model has the averaged weights in the body. They change places with its own, one at a time: no second
        copy is made, and what comes back is what was there, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.weights.items():
            own = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name].copy_(own)
        self._swapped = not self._swapped

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, to be saved or filled in place: averages by parameter, and "/updates"."""
        assert not self._swapped, "these are the model's own weights now"
        return {**self.average, _UPDATES: self._updates}

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Fill `tensors()` from a checkpoint. CorruptFile: names missing or left over; ConfigError: another shape."""
        into = self.tensors()
        if wrong := sorted(into.keys() ^ saved.keys()):
            where = "is not in the checkpoint" if wrong[0] in into else "is in the checkpoint alone"
            raise CorruptFile(f"the average of {wrong[0]} {where} (one of {len(wrong)})")
        for name, target in into.items():
            if saved[name].shape != target.shape or saved[name].dtype != target.dtype:
                raise ConfigError(f"the average of {name} has another shape or dtype in the checkpoint")
            target.copy_(saved[name])
