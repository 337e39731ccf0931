"""The single findings of `doctor`, on machines that aren't this one."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

import qkv.cli.machine as module
from qkv.cli.machine import Machine, cores, look

CPUINFO = "processor: 0\nmodel name\t: A Fast One\nflags\t\t: fpu avx2 fma avx512f ht\n\nprocessor: 1\nmodel name: B\n"
MEMINFO = "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\nHugePages_Total:       0\n"


def files(monkeypatch: pytest.MonkeyPatch, **texts: str) -> None:
    named = {name.replace("__", "/"): text for name, text in texts.items()}
    monkeypatch.setattr(module, "_read", lambda path: next((t for n, t in named.items() if path.endswith(n)), ""))


def test_processor_and_memory_as_linux_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, cpuinfo=CPUINFO, meminfo=MEMINFO, memory__max="ignored")
    machine = Machine(memory=module._memory())
    module._processor(machine)
    assert machine.processor["name"] == "A Fast One"
    assert machine.processor["instructions"] == ["avx2", "fma", "avx512f"]
    assert machine.memory == {"total": 2048 * 1024, "available": 1024 * 1024}


def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch)
    machine = Machine(memory=module._memory())
    module._processor(machine)
    assert machine.processor["name"]
    assert machine.processor["instructions"] == []
    assert machine.memory["total"] > 1 << 20


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("", 4)])
def test_a_container_s_share_counts(monkeypatch: pytest.MonkeyPatch, quota: str, expected: int) -> None:
    files(monkeypatch, **{"cpu.max": quota})
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 5, 7})
    assert cores() == expected
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert cores() == expected


def test_a_torch_that_can_t_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    machine = look()
    (problem,) = machine.problems
    assert problem.startswith("torch can't be imported: import of torch halted")
    assert machine.versions["qkv"]


def test_a_part_that_fails_is_noted_and_the_rest_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> int:
        raise RuntimeError("driver too old")

    monkeypatch.setattr("torch.cuda.device_count", broken)
    machine = look()
    assert "gpus: RuntimeError: driver too old" in machine.notes
    assert machine.caches
    assert machine.models
    assert machine.problems == []


def test_a_driver_without_a_gpu_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.version.cuda", None)
    machine = Machine()
    module._gpus(machine)
    assert machine.notes[0].startswith("there is an NVIDIA driver, but torch sees no GPU: it is built without CUDA")


def test_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "kernels" / "a.so").write_bytes(b"12345")
    (tmp_path / "cache" / "kernels" / "dangling").symlink_to("nowhere-at-all")
    machine = Machine()
    module._caches(machine)
    _, own, kernels = machine.caches
    assert (kernels["bytes"], own["bytes"]) == (5 + 14, 5 + 14)
    assert kernels["writable"]
    monkeypatch.setattr(module, "_MOST_FILES", 1)
    assert module._size(tmp_path)[1] is False
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "file" / "cache"))
    machine = Machine()
    module._caches(machine)
    assert not machine.caches[1]["writable"]
    assert f"{tmp_path}/file/cache can't be written to: set QKV_CACHE to a folder that can" in machine.notes


def test_a_package_that_an_extra_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("matplotlib", "qkv-is-never-asked-for"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    machine = Machine()
    module._extras(machine)
    assert machine.extras["plot"] == ["matplotlib"]
    assert machine.extras["dev"] == ["matplotlib"]


def test_a_folder_that_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", missing)
    machine = Machine()
    module._extras(machine)
    assert machine.notes == ["qkv is imported from its folder and not installed: pip install -e . there"]
