"""Where a number stopped being finite: which batch, which module. A step with one is never taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qkv.errors import InputError
from qkv.train.slices import slice_of

_NAMED = 8  # samples that a message names


class NotFinite(InputError):
    """A loss or a gradient is NaN or infinite. The step was not taken and nothing was saved."""


def first_bad(module: nn.Module, run: Callable[[], Tensor]) -> tuple[bool, str] | None:
    """The first module, in the order of computing, that gives a number which is not finite, in words; and whether that
    was ahead, and not in the gradients, which sharded ranks have in common. None: all is finite. `run` computes the
    loss again; it is always taken back, as sharded ranks compute together."""
    found: list[str] = []
    with _watched(module, found), torch.enable_grad():
        loss = run()
        loss.backward()  # type: ignore[no-untyped-call]
    if found:
        return True, found[0]
    if not loss.isfinite():
        return True, "every module gives finite numbers, and the loss of them is not"
    bad = [name for name, p in module.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return (False, f"the loss is finite, and the gradient of {bad[0]} is not") if bad else None


def _finite(x: Tensor) -> bool:
    """Of a sharded tensor this rank's rows."""
    return bool(slice_of(x.detach()).rows.isfinite().all())


@contextmanager
def _watched(module: nn.Module, found: list[str]) -> Iterator[None]:
    names = {one: name or type(one).__name__ for name, one in module.named_modules()}

    def look(one: nn.Module, given: Any, out: Any) -> None:
        if found or not isinstance(out, Tensor) or out.isfinite().all():
            return
        weights = [name for name, p in one.named_parameters() if not _finite(p)]
        why = f", whose {weights[0]} is not finite itself" if weights else ""
        found.append(f"the first to give a number that is not finite is {names[one]}{why}")

    handles = [one.register_forward_hook(look) for one in module.modules() if one is not module]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def named(samples: list[str]) -> str:
    """Places of samples, in words."""
    rest = len(samples) - _NAMED
    return ", ".join(samples[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
