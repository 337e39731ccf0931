"""Packed products as the kernels define them, in numpy and float64: x in whole numbers of 32, each with a scale."""

import numpy as np

from qkv.kernels.blocks import BLOCKS
from tests.kernels.test_dequantize import HALVES

SIZES = ["mixed", "0", "1e-45", "1e-39", "1e-36", "1e-30", "1e-3", "1", "1e4", "1e30", "3e38", "nan", "inf", "-inf"]


def any_blocks(kind: str, N: int, blocks: int, seed: int) -> np.ndarray:
    """uint8 [N, bytes of a row]: every byte random, so that scales are of every size, negative, infinite and NaN."""
    shape = (N, blocks * BLOCKS[kind].nbytes)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def finite_blocks(kind: str, N: int, blocks: int, seed: int) -> np.ndarray:
    """The same with scales below two: a bit of their exponents is cleared."""
    raw = any_blocks(kind, N, blocks, seed).reshape(N, blocks, -1)
    for at in HALVES[kind]:
        raw[..., at + 1] &= 0xBF
    return raw.reshape(N, -1)


def any_rows(sizes: list[str], K: int, seed: int) -> np.ndarray:
    """float32 [len(sizes), K]: a row of numbers of each size; `mixed` takes a size for each of them, one may be bad."""
    generator = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        finite = [float(known) for known in SIZES[1:] if abs(float(known)) < 1e38]
        of = (
            generator.choice(finite, K)
            if size == "mixed"
            else np.full(K, float(size) if abs(float(size)) < 1e38 else 1)
        )
        row = np.clip(of * generator.uniform(-1, 1, K), -3.4e38, 3.4e38)
        if size != "mixed" and not abs(float(size)) < 1e38:
            row[generator.integers(K)] = float(size)
        rows.append(row)
    return np.stack(rows).astype(np.float32)


def slack(K: int) -> float:
    """Of Σ |terms|: what float32 sums of K / 32 terms may be off."""
    return float(2.0**-24 * (8 + 2 * np.sqrt(K)))


def product(kind: str, raw: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x Wᵀ [M, N] in float64; Σ |terms| of each; what it may be off where a number is just between two whole ones."""
    with np.errstate(all="ignore"):
        q, d, m = _weights(kind, raw)
        whole, other, s = _whole(x)
        w = d * q + m
        exact = (whole * s) @ w.T
        size = np.abs(d) * np.abs(q) + np.abs(m)
        terms, unsure = (np.abs(whole) * s) @ size.T, (np.abs(whole - other) * s) @ np.abs(w).T
    bad = ~np.isfinite(s).all(1)[:, None] | ~np.isfinite(w).all(1)[None]
    return np.where(bad, np.nan, exact), np.where(bad, np.inf, terms), np.where(bad, 0, unsure)


def _whole(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x as whole numbers, rounded once, and rounded to float32 before (a processor may do either); each one's scale."""
    groups = x.reshape(len(x), -1, 32)
    largest = np.abs(groups).max(-1, keepdims=True)
    finite = np.isfinite(groups).all(-1, keepdims=True)
    inverse = np.where(finite & (largest > np.float32(1e-36)), np.float32(127) / largest, np.float32(0)).astype(
        np.float32
    )
    known = np.where(finite, groups, np.float32(0))
    once, twice = np.rint(known.astype(np.float64) * inverse), np.rint((known * inverse).astype(np.float32))
    scale = np.where(finite, (largest / np.float32(127)).astype(np.float64), np.nan)
    return (
        once.reshape(x.shape),
        twice.astype(np.float64).reshape(x.shape),
        np.broadcast_to(scale, groups.shape).reshape(x.shape),
    )


def _weights(kind: str, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each weight [N, K] its whole number, scale and minimum (ggml-common.h): w = d·q + m."""
    b = raw.reshape(len(raw), -1, BLOCKS[kind].nbytes)

    def halves(at: int) -> np.ndarray:
        return np.ascontiguousarray(b[..., at : at + 2]).view(np.float16).astype(np.float64)

    q, d, m = {"Q4_0": _four, "Q4_1": _four, "Q8_0": _eight, "Q4_K": _k, "Q5_K": _k, "Q6_K": _six}[kind](
        kind, b, halves
    )
    q, d, m = np.broadcast_arrays(q.astype(np.float64), d[..., None], m[..., None])
    return tuple(part.reshape(len(raw), -1) for part in (q, d, m))  # type: ignore[return-value]


def _four(kind: str, b: np.ndarray, halves) -> tuple[np.ndarray, ...]:  # type: ignore[no-untyped-def]
    packed = b[..., -16:]
    q = np.concatenate([packed & 15, packed >> 4], -1)[:, :, None]
    d = halves(0)
    return q, d, halves(2) if kind == "Q4_1" else -8 * d


def _eight(kind: str, b: np.ndarray, halves) -> tuple[np.ndarray, ...]:  # type: ignore[no-untyped-def]
    d = halves(0)
    # with an offset, as bodies without a signed product have it: their terms, and so their rounding, are larger
    return (b[..., 2:] ^ 0x80)[:, :, None], d, -128 * d


def _k(kind: str, b: np.ndarray, halves) -> tuple[np.ndarray, ...]:  # type: ignore[no-untyped-def]
    six, low = b[..., 4:16].astype(int), b[..., -128:].reshape(*b.shape[:2], 4, 32)
    q = np.stack([low & 15, low >> 4], 3).reshape(*b.shape[:2], 8, 32)
    if kind == "Q5_K":
        fifth = b[:, :, None, 16:48] >> np.arange(8)[:, None] & 1
        q = q + 16 * fifth
    scales = np.concatenate([six[..., :4] & 63, (six[..., 8:] & 15) | six[..., :4] >> 6 << 4], -1)
    minima = np.concatenate([six[..., 4:8] & 63, six[..., 8:] >> 4 | six[..., 4:8] >> 6 << 4], -1)
    return q, halves(0) * scales, -halves(2) * minima


def _six(kind: str, b: np.ndarray, halves) -> tuple[np.ndarray, ...]:  # type: ignore[no-untyped-def]
    low, high = b[..., :128].reshape(*b.shape[:2], 2, 2, 32), b[..., 128:192].reshape(*b.shape[:2], 2, 32)
    parts = [(low[:, :, :, i % 2] >> (i // 2 * 4) & 15) | (high >> (2 * i) & 3) << 4 for i in range(4)]
    q = np.stack(parts, 3).reshape(*b.shape[:2], 16, 16)
    d = halves(208) * np.ascontiguousarray(b[..., 192:208]).view(np.int8)
    return q, d, -32 * d
