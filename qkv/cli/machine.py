"""What qkv finds where it runs: what `doctor` prints. Nothing here is needed to run a model."""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qkv.cli.console import binary

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "transformers", "sentence-transformers")
SETTINGS = (
    "CC", "CUDA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE",
    "HF_HUB_OFFLINE", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF", "QKV_CACHE", "QKV_NATIVE",
)  # fmt: skip
INSTRUCTIONS = (  # those that make products fast, as /proc/cpuinfo calls them
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_MOST_FILES = 50_000  # in a cache; beyond, counting would take seconds


@dataclass
class Machine:
    """What was found. `problems`: what makes answers wrong or impossible, `notes`: what makes them slow or missing."""

    versions: dict[str, str] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    gpus: list[str] = field(default_factory=list)
    native: dict[str, Any] = field(default_factory=dict)
    caches: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    extras: dict[str, list[str]] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look() -> Machine:
    """Everything at once. What can't be found out is a note or a problem, never an error."""
    machine = Machine()
    machine.versions = _versions()
    machine.settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    machine.memory = _memory()
    _extras(machine)
    try:
        import torch  # noqa: F401
    except Exception as error:  # a missing library, a wrong processor, half an installation: torch raises what it likes
        machine.problems.append(
            f"torch can't be imported: {error}; install it again, see https://pytorch.org/get-started"
        )
        return machine
    for part in (_processor, _gpus, _native, _caches, _models):
        _tried(machine, part)
    return machine


def _tried(machine: Machine, part: Callable[[Machine], None]) -> None:
    try:
        part(machine)
    except Exception as error:  # the doctor comes when something is broken, and must get to the end
        machine.notes.append(f"{part.__name__.strip('_')}: {type(error).__name__}: {error}")


def _versions() -> dict[str, str]:
    from qkv import __version__

    found = {"qkv": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def cores() -> int:
    """Processors that this process may use: those it is bound to, and no more than a container's share of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = re.match(r"(\d+) (\d+)", _read("/sys/fs/cgroup/cpu.max"))
    return min(bound, max(1, int(quota[1]) // int(quota[2]))) if quota else bound


def _processor(machine: Machine) -> None:
    import torch

    known = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", known, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", known, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    threads, free = torch.get_num_threads(), cores()
    machine.processor = {
        "name": name[1] if name else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "cores": free,
        "threads": threads,
        "torch": torch.backends.cpu.get_cpu_capability(),
        "instructions": [flag for flag in INSTRUCTIONS if flag in has],
    }
    if threads > free:
        machine.notes.append(
            f"torch uses {threads} threads on {free} core{'s' * (free > 1)}, where they wait for each other: "
            f"set OMP_NUM_THREADS={free}"
        )


def _memory() -> dict[str, int]:
    found = {
        key: int(kB) * 1024 for key, kB in re.findall(r"^(\w+):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    }
    memory = {name: found[key] for name, key in (("total", "MemTotal"), ("available", "MemAvailable")) if key in found}
    if not memory and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = {"total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")}
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return memory | ({"limit": int(limit)} if limit.isdigit() else {})


def _gpus(machine: Machine) -> None:
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        machine.gpus.append(f"cuda:{index} {device.name}, {binary(device.total_memory)}")
    if torch.backends.mps.is_available():
        machine.gpus.append("mps")
    if not torch.cuda.device_count() and shutil.which("nvidia-smi"):
        why = "it is built without CUDA" if torch.version.cuda is None else "CUDA can't be started"
        machine.notes.append(
            f"there is an NVIDIA driver, but torch sees no GPU: {why}; see https://pytorch.org/get-started"
        )


def _native(machine: Machine) -> None:
    from qkv.kernels.check import TOLERANCE, errors
    from qkv.kernels.native import native, reason

    library = native()
    machine.native = {"used": library is not None, "reason": reason()}
    if library is None:
        machine.notes.append(f"packed weights run on torch alone, several times slower: {reason()}")
        return
    found = errors(library)
    machine.native |= {"level": library.level, "path": str(library.path)}
    machine.native["errors"] = {kind: error if error == error else None for kind, error in found.items()}
    for kind, error in found.items():
        if not error <= TOLERANCE:
            machine.problems.append(
                f"the native product with {kind} is wrong by {error:.1g} of its size: set QKV_NATIVE=0, and report it"
            )


def _caches(machine: Machine) -> None:
    from huggingface_hub import constants

    from qkv.paths import cache_root

    for name, path in (
        ("hub", Path(constants.HF_HUB_CACHE)),
        ("qkv", cache_root()),
        ("kernels", cache_root() / "kernels"),
    ):
        size, all_of_it = _size(path)
        writable = _writable(path)
        machine.caches.append(
            {"name": name, "path": str(path), "bytes": size, "counted": all_of_it, "writable": writable}
        )
        if not writable:
            variable = "HF_HOME" if name == "hub" else "QKV_CACHE"
            machine.notes.append(f"{path} can't be written to: set {variable} to a folder that can")


def _size(path: Path) -> tuple[int, bool]:
    """Bytes of the files below a folder (links aren't followed), and whether all were counted."""
    total, seen = 0, 0
    for folder, _, names in os.walk(path):
        for name in names:
            seen += 1
            if seen > _MOST_FILES:
                return total, False
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total, True


def _writable(path: Path) -> bool:
    """Whether a file could be made there, for which its folders may first have to be."""
    there = next((parent for parent in (path, *path.parents) if parent.exists()), path)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _models(machine: Machine) -> None:
    from qkv.load.reference import ALIASES, cached_models

    short = {alias.ref: name for name, alias in ALIASES.items()}
    found = cached_models()
    machine.models = [{"ref": m.ref, "alias": short.get(m.ref), "bytes": m.size} for m in found]
    missing = set(short) - {m.ref for m in found}
    machine.models += [{"ref": ref, "alias": short[ref], "bytes": None} for ref in sorted(missing)]


def _extras(machine: Machine) -> None:
    """For each of qkv's extras the packages that aren't there."""
    try:
        about = importlib.metadata.metadata("qkv")
    except importlib.metadata.PackageNotFoundError:
        machine.notes.append("qkv is imported from its folder and not installed: pip install -e . there")
        return
    for extra in about.get_all("Provides-Extra") or []:
        needs = [
            text for text in about.get_all("Requires-Dist") or [] if re.search(rf"extra == ['\"]{extra}['\"]", text)
        ]
        names = [re.match(r"[\w.-]+", text) for text in needs]
        machine.extras[extra] = [found[0] for found in names if found and not _installed(found[0])]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
