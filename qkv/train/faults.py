"""Where a number stopped being finite: which batch, which module. A step with one is never taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qkv.errors import InputError

_NAMED = 8  # samples that a message names


class NotFinite(InputError):
    """A loss or a gradient is NaN or infinite. The step was not taken and nothing was saved."""


def first_bad(module: nn.Module, run: Callable[[], Tensor]) -> str:
    """The first module, in the order of computing, that gives a number which is not finite, in words. `run` computes
    the loss again."""
    found: list[str] = []
    with _watched(module, found), torch.enable_grad():
        loss = run()
    if found:
        return found[0]
    if not loss.isfinite():
        return "every module gives finite numbers, and the loss of them is not"
    loss.backward()  # type: ignore[no-untyped-call]
    bad = [name for name, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return f"the loss is finite, and the gradient of {bad[0]} is not" if bad else "computed again, all is finite"


@contextmanager
def _watched(module: nn.Module, found: list[str]) -> Iterator[None]:
    names = {one: name or type(one).__name__ for name, one in module.named_modules()}

    def look(one: nn.Module, given: Any, out: Any) -> None:
        if found or not isinstance(out, Tensor) or out.isfinite().all():
            return
        weights = [name for name, p in one.named_parameters() if not p.isfinite().all()]
        why = f", whose {weights[0]} is not finite itself" if weights else ""
        found.append(f"the first to give a number that is not finite is {names[one]}{why}")

    handles = [one.register_forward_hook(look) for one in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def named(samples: list[str]) -> str:
    """Places of samples, in words."""
    rest = len(samples) - _NAMED
    return ", ".join(samples[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
