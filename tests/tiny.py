"""A model of a few thousand weights, for tests of the parts."""

from typing import Any

import torch

from qkv import spec
from qkv.nn.stack import Transformer

VOCAB = 31


def tiny_spec(*mixers: spec.Mixer, layers: int = 2, **stack: Any) -> spec.Model:
    """Blocks with these mixers in turn: 16 numbers a token."""
    mixers = mixers or (spec.Attention(4, 2, position=spec.Rotary()),)
    blocks = tuple(spec.Block(mixer, spec.Gated(24, "silu"), spec.RMS()) for mixer in mixers)
    return spec.Model(VOCAB, 16, spec.Stack(blocks, layers, norm=spec.RMS(), **stack))


def tiny(*mixers: spec.Mixer, layers: int = 2, **stack: Any) -> Transformer:
    """That model with weights large enough that a wrong key shows in the fifth digit."""
    model = Transformer(tiny_spec(*mixers, layers=layers, **stack)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model
