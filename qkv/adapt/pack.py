"""A plain matrix as ggml's blocks of 32 weights: Q8_0, w ≈ d·q, and Q4_1, w ≈ d·q + m.

d and m are 16-bit floats. They are rounded outwards where it matters, so that the steps reach from a group's smallest
weight to its largest, and the nearest step is never further than d/2 from a weight: that is min–max rounding. For 4
bits a search follows it, as in llama.cpp's `make_qkx2_quants`: steps somewhat wider or narrower, and the d and m that
fit them best by least squares; the squared error falls by a fifth.

G  groups: they lie side by side, [32, G], as torch is slow on rows of 32
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qkv.kernels.blocks import BLOCKS

LARGEST = 65504.0  # of 16-bit floats: a minimum can't be below −LARGEST
GROUP = 32
_CHUNK = 1 << 17  # weights at a time: several float32 arrays of them stay in a core's cache
_LEVELS = 15  # the largest q of 4 bits
_SHIFTS = tuple(-1 + k / 4 for k in range(9))  # steps in the range, beyond 15, that the search tries


def pack(weight: Tensor, kind: str) -> Tensor:
    """A matrix [N, K] of any float dtype as blocks: uint8 [N, bytes of a row], on its device. Needs a few MiB.

    K must be a multiple of 32, and every number finite and at most LARGEST in size (who calls makes sure)."""
    N, K = weight.shape
    out = torch.empty(N * K // GROUP, BLOCKS[kind].nbytes, dtype=torch.uint8, device=weight.device)
    rows = max(1, _CHUNK // K)
    with one_thread():
        for start in range(0, N, rows):
            x = weight.detach()[start : start + rows].to(torch.float32).reshape(-1, GROUP)
            at = start * K // GROUP
            _PACK[kind](x.T.contiguous(), out[at : at + len(x)])
    return out.view(N, -1)


@contextmanager
def one_thread() -> Iterator[None]:
    """The body on this thread alone: it is a row of short operations, at the end of each of which several threads would
    wait for each other (15 times as long where another process wants a core)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _q8_0(x: Tensor, out: Tensor) -> None:
    """x [32, G] → {f16 d; i8 q[32]}. (Fitting d by least squares would gain 1 %.)"""
    largest = x.abs().amax(0)
    d = (largest / 127).half().float()
    d = torch.where(largest > 127.5 * d, _up(largest / 127), d)  # the smallest numbers of 16 bits are far apart
    out[:, :2] = _bytes(d)
    out[:, 2:] = x.div(_divisor(d)).round_().clamp_(-127, 127).to(torch.int8).T.contiguous().view(torch.uint8)


def _q4_1(x: Tensor, out: Tensor) -> None:
    """x [32, G] → {f16 d, m; u8 q[16]}: byte j holds weights j (low half) and j + 16 (high half)."""
    d, m = _search(x)
    q = _steps(x, d, m).to(torch.uint8)
    out[:, :2], out[:, 2:4] = _bytes(d), _bytes(m)
    out[:, 4:] = (q[:16] | q[16:] << 4).T


_PACK: dict[str, Callable[[Tensor, Tensor], None]] = {"Q8_0": _q8_0, "Q4_1": _q4_1}


def min_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [32, G] → d, m [G], float32 numbers that 16 bits hold: m ≤ x ≤ m + 15·d."""
    m = _down(x.amin(0))
    return _up((x.amax(0) - m) / _LEVELS), m


def _search(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [32, G] → the d, m [G] of the least squared error among min–max's and those that are fitted to it; none takes
    any weight further away than half a step of min–max."""
    d0, m0 = min_max(x)
    d, m = d0, m0
    least, _ = _error(x, d, m)
    above = x - m0
    whole, sum_x = above / _divisor(d0), above.sum(0)
    for shift in _SHIFTS:
        q = whole.mul((_LEVELS + shift) / _LEVELS).round_().clamp_(0, _LEVELS)
        fitted_d, fitted_m = _fit(above, sum_x, q, d0)
        new_d, new_m = fitted_d.half().float(), (m0 + fitted_m).half().float()
        error, furthest = _error(x, new_d, new_m)
        better = (error < least) & (furthest <= d0 / 2)
        least = torch.where(better, error, least)
        d, m = torch.where(better, new_d, d), torch.where(better, new_m, m)
    return d, m


def _fit(x: Tensor, sum_x: Tensor, q: Tensor, otherwise: Tensor) -> tuple[Tensor, Tensor]:
    """The d and m [G] of the least Σ (d·q + m − x)²; `otherwise` for d where all q are equal."""
    sum_q = q.sum(0)
    spread = GROUP * (q * q).sum(0) - sum_q.square()
    d = (GROUP * (q * x).sum(0) - sum_q * sum_x) / spread
    d = torch.where(spread > 0, d, otherwise)
    return d, (sum_x - d * sum_q) / GROUP


def _steps(x: Tensor, d: Tensor, m: Tensor) -> Tensor:
    return x.sub(m).div_(_divisor(d)).round_().clamp_(0, _LEVELS)


def _error(x: Tensor, d: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """Σ (d·q + m − x)² and max |d·q + m − x| of each group [G], for the nearest q."""
    off = _steps(x, d, m).mul_(d).add_(m).sub_(x)
    return (off * off).sum(0), off.abs_().amax(0)


def _divisor(d: Tensor) -> Tensor:
    """d, and 1 where it is 0 (all weights of the group are equal, and q is 0)."""
    return torch.where(d > 0, d, 1.0)


def _bytes(x: Tensor) -> Tensor:
    """float32 [G] as 16 bits: uint8 [G, 2]."""
    return x.half().view(torch.uint8).view(-1, 2)


def _down(x: Tensor) -> Tensor:
    """The largest number of 16 bits that is not above x, as float32."""
    near = x.half()
    return torch.where(near.float() > x, torch.nextafter(near, near.new_tensor(-torch.inf)), near).float()


def _up(x: Tensor) -> Tensor:
    return -_down(-x)
