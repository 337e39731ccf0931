"""The packed product as an operator of torch: what a compiler or an exporter sees in place of a call into a library.

Eager code calls the library at once (`qkv.nn.packed`): an operator made in Python costs as much as a small product.
"""

import torch
from torch import Tensor

from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import TYPES, native


@torch.library.custom_op("qkv::packed_linear", mutates_args=())
def packed_linear(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    """x [..., K] times W [N, K], transposed, of which `blocks` [N, bytes of a row] are the bytes: [..., N]."""
    library, width = native(), x.shape[-1]
    if library is None or kind not in TYPES or x.device.type != "cpu":
        weight = dequantize(blocks.reshape(-1), kind, (len(blocks), width))
        return torch.nn.functional.linear(x.float(), weight).to(x.dtype)
    blocks, rows = blocks.contiguous(), x.numel() // width
    return library.linear(TYPES[kind], blocks.data_ptr(), len(blocks), width, x, rows).to(x.dtype)


@packed_linear.register_fake
def _shape(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    block = BLOCKS[kind]
    assert x.shape[-1] == blocks.shape[1] // block.nbytes * block.weights, "x and W have different widths"
    return x.new_empty((*x.shape[:-1], blocks.shape[0]))
