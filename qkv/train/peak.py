"""How fast this machine multiplies: what a run's FLOP/s are told as a share of (MFU, arXiv 2204.02311, app. B)."""

import time

import torch

_SIZES = (256, 512, 1024, 2048, 4096, 8192)


@torch.no_grad()
def gemm_peak(dtype: torch.dtype | str, device: torch.device | str = "cpu", seconds: float = 0.5) -> float:
    """FLOP/s of the fastest square matrix product in this dtype, a multiplication and an addition counted as two; with
    this process's threads, in about so many seconds. Sizes double as long as there is time for some of each."""
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    best, end = 0.0, time.perf_counter() + seconds
    for size in _SIZES:
        a = torch.ones(size, size, device=device, dtype=kind)
        out = torch.empty_like(a)
        took = min(_product(a, out) for _ in range(3))  # the first one has costs of its own
        best = max(best, 2 * size**3 / took)
        if time.perf_counter() + 8 * 4 * took > end:  # the next size takes eight times as long
            break
    while time.perf_counter() < end:
        best = max(best, 2 * size**3 / _product(a, out))
    return best


def _product(a: torch.Tensor, out: torch.Tensor) -> float:
    """Seconds of one product."""
    start = time.perf_counter()
    torch.mm(a, a, out=out)
    out[0, 0].item()  # waits for the device
    return time.perf_counter() - start
