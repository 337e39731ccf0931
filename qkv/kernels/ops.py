"""The packed product as an operator of torch: what a compiler or an exporter sees in place of a call into a library.

Eager code calls the library at once (`qkv.nn.packed`): an operator made in Python costs as much as a small product.
"""

import torch
from torch import Tensor

from qkv.kernels.blocks import BLOCKS
from qkv.kernels.native import TILE, TYPES, native


@torch.library.custom_op("qkv::packed_linear", mutates_args=())
def packed_linear(x: Tensor, tiles: Tensor, kind: str, rows: int) -> Tensor:
    """x [..., K] times W [N, K], transposed, of N = `rows` rows in tiles (`Native.pack`): [..., N]."""
    library, width = native(), x.shape[-1]
    assert library is not None, "tiles are the native library's own form"
    return library.linear(TYPES[kind], tiles.data_ptr(), rows, width, x, x.numel() // width).to(x.dtype)


@packed_linear.register_fake
def _shape(x: Tensor, tiles: Tensor, kind: str, rows: int) -> Tensor:
    block = BLOCKS[kind]
    held = len(tiles) // (-(-rows // TILE) * TILE) // block.nbytes * block.weights
    assert x.shape[-1] == held, f"x has width {x.shape[-1]}, W {held}"
    return x.new_empty((*x.shape[:-1], rows))
