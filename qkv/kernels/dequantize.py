"""GGUF's packed weights as floats. Each block layout is a struct of ggml's `ggml-common.h` (MIT); little endian.

A kernel turns `blocks`, uint8 `[blocks, bytes of one block]`, into `out`, float32 `[blocks, weights of one block]`.
Every product of scales and weights has at most 24 significant bits, hence is exact in float32: the order of the
factors cannot change a result, and it equals ggml's bit for bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qkv.errors import WeightError
from qkv.kernels.blocks import BLOCKS

_CHUNK = 1 << 18  # weights at a time: their floats (1 MiB) stay in a core's cache while several passes go over them
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(raw: Tensor, type: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """`raw`, uint8 `[bytes]`, as a tensor of `shape` and `dtype`; needs about 2 MiB beside the result.

    F32, F16 and BF16 in their own dtype are a view of `raw`, not a copy.
    Raises WeightError for a type without a kernel or a `raw` that is too short or too long for `shape`.
    """
    count = 1
    for size in shape:
        count *= size
    if type not in KERNELS and type not in _PLAIN:
        raise WeightError(f"GGUF type {type} is not supported: qkv reads {', '.join([*_PLAIN, *KERNELS])}")
    block = BLOCKS[type]
    if count % block.weights or raw.numel() != count // block.weights * block.nbytes:
        raise WeightError(f"{raw.numel()} bytes of {type} can't hold a tensor of shape {list(shape)}")
    if type in _PLAIN:
        return _aligned(raw).view(_PLAIN[type]).view(shape).to(dtype)
    result = raw.new_empty((count // block.weights, block.weights), dtype=dtype)
    _fill(result, _aligned(raw).view(-1, block.nbytes), KERNELS[type])
    return result.view(shape)


def _fill(result: Tensor, blocks: Tensor, kernel: Callable[[Tensor, Tensor], None]) -> None:
    """Run the kernel over all blocks, a chunk at a time, on this thread alone.

    With more threads torch splits every operation of a chunk between them, and they wait for each other, spinning, at
    its end. Half of the time goes into the system's fresh pages, so that gains a quarter on idle cores (0.4 s instead
    of 0.5 for 135M weights), but costs 4 to 20 s as soon as another process wants a core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = _CHUNK // result.shape[1]
        for start in range(0, len(result), step):
            target = result[start : start + step]
            floats = target if target.dtype == torch.float32 else torch.empty_like(target, dtype=torch.float32)
            kernel(blocks[start : start + step], floats)
            if floats is not target:
                target.copy_(floats)
    finally:
        torch.set_num_threads(threads)


def _aligned(raw: Tensor) -> Tensor:
    return raw if raw.data_ptr() % 4 == 0 and raw.is_contiguous() and raw.storage_offset() % 4 == 0 else raw.clone()


def _f16(field: Tensor) -> Tensor:
    """Half-precision numbers, uint8 `[blocks, 2n]`, as float32 `[blocks, n]`."""
    return field.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 `[..., n]` as `[..., 2, n]`: first the low halves of all bytes, then the high halves.

    In words of as many bytes as the layout allows, for torch is slow on rows as short as 16 elements.
    """
    wide = all(step % 4 == 0 for step in (*packed.stride()[:-1], packed.storage_offset()))
    word, mask = (torch.int32, 0x0F0F0F0F) if wide else (torch.int16, 0x0F0F)
    words = packed.view(word)
    halves = words.new_empty(*words.shape[:-1], 2, words.shape[-1])
    torch.bitwise_and(words, mask, out=halves[..., 0, :])
    torch.bitwise_right_shift(words, 4, out=halves[..., 1, :]).bitwise_and_(mask)
    return halves.view(torch.uint8)


def _bits(packed: Tensor, width: int) -> Tensor:
    """uint8 `[..., n]` as `[..., 8 / width, n]`: first the lowest `width` bits of all bytes, then the next ones."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device).view(-1, 1)
    return (packed.unsqueeze(-2) >> shifts).bitwise_and_((1 << width) - 1)


def q8_0(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d; i8 q[32]}`: d·q."""
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_f16(blocks[:, :2]))


def q4_0(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d; u8 q[16]}`: d·(q − 8); byte j holds weights j (low half) and j + 16 (high half)."""
    out.copy_(_nibbles(blocks[:, 2:]).flatten(1)).sub_(8).mul_(_f16(blocks[:, :2]))


def q4_1(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d, m; u8 q[16]}`: d·q + m; halves as in q4_0."""
    scale = _f16(blocks[:, :4])
    out.copy_(_nibbles(blocks[:, 4:]).flatten(1)).mul_(scale[:, :1]).add_(scale[:, 1:])


def q5_0(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d; u32 h; u8 q[16]}`: d·(q + 16·bit − 16); bit j of h is the fifth bit of weight j."""
    out.copy_(_five(blocks[:, 6:], blocks[:, 2:6])).sub_(16).mul_(_f16(blocks[:, :2]))


def q5_1(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d, m; u32 h; u8 q[16]}`: d·(q + 16·bit) + m; bits as in q5_0."""
    scale = _f16(blocks[:, :4])
    out.copy_(_five(blocks[:, 8:], blocks[:, 4:8])).mul_(scale[:, :1]).add_(scale[:, 1:])


def _five(low: Tensor, high: Tensor) -> Tensor:
    fifth = _bits(high, 1).transpose(1, 2).flatten(1)
    return _nibbles(low).flatten(1).bitwise_or_(fifth << 4)


def q4_k(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d, dmin; u8 scales[12]; u8 q[128]}`: eight groups of 32 weights, (d·scale)·q − dmin·min."""
    scale, low = _scale_min(blocks)
    q = _nibbles(blocks[:, 16:].view(-1, 4, 32))
    out.copy_(q.flatten(1)).view(-1, 8, 32).mul_(scale).sub_(low)


def q5_k(blocks: Tensor, out: Tensor) -> None:
    """`{f16 d, dmin; u8 scales[12]; u8 h[32]; u8 q[128]}`: as q4_k; bit g of h[j] is group g's fifth bit j."""
    scale, low = _scale_min(blocks)
    q = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32).bitwise_or_(_bits(blocks[:, 16:48], 1) << 4)
    out.copy_(q.flatten(1)).view(-1, 8, 32).mul_(scale).sub_(low)


def _scale_min(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The 6-bit scales and minima of eight groups, times d and dmin: float32 `[blocks, 8, 1]` each.

    Bytes 0–3 and 4–7 hold the scales and minima of groups 0–3; their upper two bits, over the halves of
    bytes 8–11, those of groups 4–7.
    """
    d = _f16(blocks[:, :4])
    first, mins, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat([first & 63, (last & 15) | (first >> 6 << 4)], 1)
    low = torch.cat([mins & 63, (last >> 4) | (mins >> 6 << 4)], 1)
    return (scale * d[:, :1]).unsqueeze(-1), (low * d[:, 1:]).unsqueeze(-1)


def q6_k(blocks: Tensor, out: Tensor) -> None:
    """`{u8 q[128]; u8 h[64]; i8 scales[16]; f16 d}`: sixteen groups of 16 weights, (d·scale)·(q + 16·h − 32)."""
    low = _nibbles(blocks[:, :128].view(-1, 2, 64))
    high = _bits(blocks[:, 128:192].view(-1, 2, 32), 2)
    scale = blocks[:, 192:208].view(torch.int8) * _f16(blocks[:, 208:])
    out.copy_(low.flatten(1).bitwise_or_(high.flatten(1) << 4)).sub_(32)
    out.view(-1, 16, 16).mul_(scale.unsqueeze(-1))


KERNELS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k,
}  # fmt: skip
