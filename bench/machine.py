"""What a figure is worth: the machine it was taken on, whether it was quiet, and what its cores could do at best."""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def describe(threads: int) -> dict[str, Any]:
    """The machine and the software, for beside a figure."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu} ({capability})",
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def quiet(limit: float = 0.7) -> float:
    """The load of the last minute; a line of warning where it would spoil the figures."""
    load = os.getloadavg()[0]
    if load > limit:
        print(f"warning: the load is {load:.2f}; wait until it is under {limit} for figures worth keeping")
    return load


def pin(threads: int) -> None:
    """This process to its first `threads` processors, torch to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and best of some rates or times, as measured."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def read_bandwidth() -> float:
    """GB/s at which the threads sum 1 GiB that no cache holds: the best of seven."""
    block = torch.ones(2**28)
    return block.nbytes / min(seconds(block.sum) for _ in range(7)) / 1e9


def gemm_peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a square product of 2,048: the best of seven."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(7)) / 1e9
