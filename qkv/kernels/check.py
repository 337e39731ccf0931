"""Does the native library multiply right, here and now? The products of each type against plain numbers."""

import torch

from qkv.kernels.blocks import BLOCKS
from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import TYPES, Native

TOLERANCE = 1e-5  # of Σ |x| |w|; float32 sums of 512 numbers err by a hundredth of it, a wrong bit by a hundred times
SCALES = {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}  # where a block's float16 are; else at 0
_N, _K, _M = 83, 512, 3  # rows of W (the last tile isn't full), columns, rows of x


def errors(library: Native) -> dict[str, float]:
    """For each type the largest error of its products with random blocks, a prompt's too, as a part of Σ |x| |w|: above
    TOLERANCE it is wrong. (NaN: some number wasn't finite, where all should be.)"""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-126, 127, (_M, _K), generator=generator).float()
    x[:, ::32] = 127  # so that the library's own rounding, to 127 steps in every 32 numbers, changes nothing
    return {kind: _error(library, kind, x, generator) for kind in TYPES}


def _error(library: Native, kind: str, x: torch.Tensor, generator: torch.Generator) -> float:
    block = BLOCKS[kind]
    shape = (_N, _K // block.weights, block.nbytes)
    blocks = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    for at in SCALES.get(kind, (0,)):
        blocks[..., at : at + 2] = torch.rand(*shape[:2], 1, generator=generator).half().view(torch.uint8)
    blocks = blocks.view(_N, -1)
    tiles = library.pack(kind, blocks)
    weights = dequantize(blocks.view(-1), kind, (_N, _K))
    found = x.new_zeros(0, _M, _N).double()
    for prompt, exact in ((False, weights), (True, weights.bfloat16() if library.bulk else weights)):
        y = library.linear(TYPES[kind], tiles.data_ptr(), _N, _K, x, _M, prompt)
        size = x.double().abs() @ exact.double().abs().T
        found = torch.cat((found, ((y - x.double() @ exact.double().T).abs() / size)[None]))
    return float(found.max())  # torch's: of numbers with a NaN it is NaN
