"""Modes of a model: training, with dropout, and evaluating, without."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside, though the model is in training mode; afterwards each part is in the mode it was in. A model
    in evaluation mode stays as it is, to the last part that was put in training mode on purpose."""
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
