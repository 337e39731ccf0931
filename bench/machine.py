"""What a figure is worth: the machine it was taken on, whether it was quiet, and what its cores could do at best.

Torch is imported where it is needed, so that a process which measures another library holds no torch.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def describe(threads: int) -> dict[str, Any]:
    """The machine and the software, for beside a figure."""
    import torch

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
        print(
            f"warning: the load is {load:.2f}; wait until it is under {limit} for figures worth keeping",
            file=sys.stderr,
        )
    return load


class Others:
    """Cores that other processes took, while some of our own were measured (Linux; elsewhere 0)."""

    def __init__(self) -> None:
        self.start, self.busy, self.own = 0.0, 0.0, 0.0

    def watch(self, pids: list[int]) -> None:
        """Begin; `pids`: our processes."""
        self.start, self.busy, self.own = time.perf_counter(), _busy(), sum(map(_used, pids))

    def cores(self, pids: list[int]) -> float:
        """How many cores' worth of time others took since then."""
        others = (_busy() - self.busy) - (sum(map(_used, pids)) - self.own)
        return max(0.0, others / (time.perf_counter() - self.start))


def _busy() -> float:
    """Seconds for which processors were not idle (or this virtual machine was held up), in all."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _used(pid: int) -> float:
    """Seconds of processor time of one process."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int | str = "self") -> dict[str, float]:
    """MB of a process that lie in memory now, what of it is its own (not a file's pages), and the most so far. Empty:
    it has ended, or there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    names = {"resident": "VmRSS", "own": "RssAnon", "peak": "VmHWM"}
    return {name: int(lines[key].split()[0]) / 1024 for name, key in names.items() if key in lines}


def pin_process(threads: int, first: int = 0) -> None:
    """This process to `threads` of its processors, from the `first` on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + threads])


def pin(threads: int, first: int = 0) -> None:
    """As pin_process, and torch to as many threads."""
    import torch

    pin_process(threads, first)
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
    import torch

    block = torch.ones(2**28)
    return block.nbytes / min(seconds(block.sum) for _ in range(7)) / 1e9


def heading(result: dict[str, Any]) -> str:
    """The machine and its load, above a table."""
    return ", ".join(f"{key} {value}" for key, value in result["machine"].items()) + f", load {result['load']:.2f}"


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Write the figures, if a file was named (`--json`)."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
