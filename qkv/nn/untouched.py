"""Whether a model does what its parts' own code says: for paths that read the parts and don't run them."""

from functools import cache

import torch
from torch import nn
from torch.nn.modules import module as modules

from qkv.nn.attend import attend
from qkv.nn.attention import Attention
from qkv.nn.stack import Stack, Transformer


def touched(model: Transformer) -> str | None:
    """What is wrapped around a part, or put in the place of what it does; None: nothing is."""
    mine, whole = type(model), Transformer
    if (mine.states, mine.logits, type(model.last)) != (whole.states, whole.logits, Stack):
        return f"{mine.__name__} has steps of its own"
    if modules._global_forward_hooks or modules._global_forward_pre_hooks:
        return "there are hooks on all modules"
    for name, weight in model.named_parameters():
        if type(weight) is not nn.Parameter or weight.layout is not torch.strided or weight.device != model.device:
            return f"{name} is no plain parameter"
    for name, module in model.named_modules():
        patched = not vars(module).keys().isdisjoint(_methods(type(module)))  # type: ignore[arg-type]
        if module._forward_hooks or module._forward_pre_hooks or patched:
            return f"{name or 'the model'} is hooked or patched"
        if isinstance(module, Attention) and module.attend is not attend:
            return f"{name} is being recorded"
    return None


@cache
def _methods(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))
