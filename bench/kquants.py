"""Plain quantizers for ggml's K types, which the `gguf` package only reads: round to nearest, group by group.

llama.cpp searches for scales with less error (`make_qkx2_quants`); these need only be what the types can hold, for a
format is measured against its own dequantized numbers. The layouts are those of `qkv.kernels.dequantize`.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def _half(x: Floats) -> Floats:
    """As float16 would keep it."""
    return x.astype(np.float16).astype(np.float32)


def _over(x: Floats, by: Floats) -> Floats:
    """x / by, 0 where `by` is 0."""
    return np.divide(x, by, out=np.zeros(np.broadcast_shapes(x.shape, by.shape), np.float32), where=by != 0)


def _raw(x: Floats) -> Bytes:
    return x.astype(np.float16).view(np.uint8)


def _by_eight(blocks: Floats, most: int) -> tuple[Bytes, Bytes]:
    """The first 16 bytes of Q4_K and Q5_K (d, dmin, 6-bit scales and minima of eight groups), and q [B, 8, 32]."""
    groups = blocks.reshape(-1, 8, 32)
    low = np.maximum(-groups.min(-1), 0)
    scale = (groups.max(-1) + low) / most
    d, dmin = _half(scale.max(-1, keepdims=True) / 63), _half(low.max(-1, keepdims=True) / 63)
    s = _over(scale, d).round().clip(0, 63)
    m = _over(low, dmin).round().clip(0, 63)
    q = _over(groups + (dmin * m)[..., None], (d * s)[..., None]).round().clip(0, most).astype(np.uint8)
    s, m = s.astype(np.uint8), m.astype(np.uint8)
    first, mins = s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6)
    last = (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    return np.concatenate([_raw(d), _raw(dmin), first, mins, last], -1), q


def _halves(q: Bytes) -> Bytes:
    """Groups in pairs [B, 8, 32] as the low and high halves of bytes [B, 128]."""
    pairs = q.reshape(-1, 4, 2, 32)
    both: Bytes = np.bitwise_or(pairs[:, :, 0], pairs[:, :, 1] * np.uint8(16))
    return both.reshape(-1, 128)


def q4_k(blocks: Floats) -> Bytes:
    """[B, 256] → [B, 144]."""
    head, q = _by_eight(blocks, 15)
    return np.concatenate([head, _halves(q)], -1)


def q5_k(blocks: Floats) -> Bytes:
    """[B, 256] → [B, 176]."""
    head, q = _by_eight(blocks, 31)
    fifth = np.packbits(q >> 4, axis=1, bitorder="little")[:, 0]
    return np.concatenate([head, fifth, _halves(np.bitwise_and(q, np.uint8(15)))], -1)


def q6_k(blocks: Floats) -> Bytes:
    """[B, 256] → [B, 210]."""
    groups = blocks.reshape(-1, 16, 16)
    scale = np.abs(groups).max(-1) / 31
    d = _half(scale.max(-1, keepdims=True) / 127)
    s = _over(scale, d).round().clip(0, 127)
    q = (_over(groups, (d * s)[..., None]).round().clip(-32, 31) + 32).astype(np.uint8).reshape(-1, 2, 2, 64)
    low = (q[:, :, 0] & 15) | ((q[:, :, 1] & 15) << 4)
    quarters = (q >> 4).reshape(-1, 2, 4, 32)
    high = quarters[:, :, 0] | (quarters[:, :, 1] << 2) | (quarters[:, :, 2] << 4) | (quarters[:, :, 3] << 6)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), s.astype(np.int8).view(np.uint8), _raw(d)], -1)


K_TYPES = {"Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k}
