"""What is stepped: a model and its objective as one module, so that every wrapper (DDP, FSDP2) sees one forward."""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qkv.nn.stack import Transformer
from qkv.train.objective import Feed, Objective

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Learner(nn.Module):
    """feed → the sum of its targets' losses, float32, its products computed in `dtype`."""

    def __init__(self, model: Transformer, objective: Objective, dtype: str = "float32") -> None:
        super().__init__()
        self.model, self.objective, self.dtype = model, objective, DTYPES[dtype]

    def forward(self, feed: Feed) -> Tensor:
        with self.precision():
            return self.objective.loss(self.model, feed)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """Autocast, where products are not in float32."""
        with torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield


def blocks(model: Transformer) -> list[nn.Module]:
    """All blocks, each once."""
    stacks = [stack for stack in (model.encoder, model.decoder) if stack is not None]
    return [block for stack in stacks for block in stack.blocks]


def checkpoint_activations(model: Transformer) -> None:
    """Blocks forget what they computed and compute it again for the gradient (arXiv 1604.06174)."""
    for block in blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(model: Transformer) -> None:
    """Each block by torch.compile: once for the first batch's shape, and once more, for any, at the first other one.
    (With dynamic=True the first compilation took minutes instead of seconds, torch 2.13.)"""
    for block in blocks(model):
        block.compile()
