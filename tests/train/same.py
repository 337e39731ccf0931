"""Whether two runs are the same to the bit."""

import torch

from qkv.train import checkpoint, log
from qkv.train.checkpoint import CHECKPOINTS


def held(out, step):
    """What a checkpoint holds, bit for bit; without how long it took."""
    found = checkpoint.at(out / CHECKPOINTS, step)
    tensors = {f"{stem}/{name}": t.clone() for stem in found.stems for name, t in found.read(stem).items()}
    state = {**found.state, "loop": {**found.state["loop"], "seconds": 0}}
    return tensors, state


def assert_same(a, b):
    """What `held` gave of two."""
    (tensors, state), (others, other_state) = a, b
    assert state == other_state
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        other = others[name]
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), name


def losses(out):
    """By step: loss, norm, rate and tokens."""
    return {line["step"]: (line["loss"], line["grad_norm"], line["lr"], line["tokens"]) for line in log.read(out).steps}
