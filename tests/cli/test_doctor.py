"""What `doctor` says on a sound machine, without a compiler or kernels, with broken ones, and its exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import qkv.kernels.check
import qkv.kernels.native
from qkv.cli.doctor import _rows
from qkv.cli.machine import Machine
from qkv.kernels.native import LEVELS, TYPES
from tests.cli.conftest import Command


def test_a_sound_machine(command: Command) -> None:
    found = command("doctor", "--json")
    assert (found.code, found.err) == (0, "")
    about = found.json
    assert about["healthy"]
    assert about["problems"] == []
    assert about["versions"]["qkv"] == qkv.__version__
    assert about["processor"]["threads"] == 1
    assert about["native"]["used"]
    assert about["native"]["level"] in LEVELS
    assert set(about["native"]["errors"]) == set(TYPES)
    assert max(about["native"]["errors"].values()) < 1e-6
    printed = command("doctor")
    assert printed.code == 0
    assert printed.out.endswith("qkv: sound\n")
    for word in (
        "versions",
        "processor",
        "memory",
        "GPU",
        "kernels",
        "caches",
        "models",
        "extras",
        about["native"]["path"],
    ):
        assert word in printed.out


def test_wrong_products_are_a_problem(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dict.fromkeys(TYPES, 1e-8) | {"Q4_K": 0.25, "Q8_0": float("nan")}
    monkeypatch.setattr(qkv.kernels.check, "errors", lambda library: wrong)
    ran = command("doctor", "--json")
    assert ran.code == 1
    assert not ran.json["healthy"]
    assert ran.json["native"]["errors"]["Q8_0"] is None
    first, second = ran.json["problems"]
    assert first == "the native product with Q8_0 is wrong by nan of its size: set QKV_NATIVE=0, and report it"
    assert second.startswith("the native product with Q4_K is wrong by 0.2 of its size")
    assert command("doctor").out.endswith(f"✗ {second}\nqkv: 2 problems\n")


def test_what_is_slow_is_a_note(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qkv.cli.machine, "cores", lambda: 1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr(qkv.kernels.native, "_found", lambda: (None, "no native kernels: there is no C compiler"))
    qkv.kernels.native.native.cache_clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    try:
        ran = command("doctor", "--json")
    finally:
        qkv.kernels.native.native.cache_clear()
    assert ran.code == 0
    assert ran.json["settings"]["OMP_NUM_THREADS"] == "8"
    assert ran.json["notes"][:2] == [
        "torch uses 8 threads on 1 core, where they wait for each other: set OMP_NUM_THREADS=1",
        "packed weights run on torch alone, several times slower: no native kernels: there is no C compiler",
    ]


def test_the_words_of_a_bare_machine() -> None:
    rows = _rows(Machine(versions={"qkv": "1"}, extras={"plot": ["matplotlib"]}))
    assert rows["GPU"] == ["none that torch sees"]
    assert rows["memory"] == ["not known here"]
    assert rows["extras"] == ["plot: pip install 'qkv[plot]' for matplotlib"]


ELSEWHERE = """
import sys, torch
from pathlib import Path
from qkv.kernels import build, native
small = Path(sys.argv[1])
build.FOLDER = small
for function in (build.sources, build.fingerprint, build.packaged, build.compiled):
    function.__defaults__ = (small,)
from qkv.cli.app import run
sys.exit(run(["doctor"]))
"""


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("no-such-compiler", "no native kernels: CC names no-such-compiler, which isn't there: install one"),
        ("false", "false failed: exit code 1, and nothing made"),
    ],
)
def test_a_machine_that_can_t_compile_is_sound(tmp_path: Path, compiler: str, said: str) -> None:
    (tmp_path / "any.c").write_text("int qkv_any(void) { return 1; }")
    environment = os.environ | {"CC": compiler, "QKV_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0
    assert ran.stderr.splitlines() == ["compiling the native kernels once (about 20 s) …"] * (compiler == "false")
    assert said in ran.stdout
    assert ran.stdout.endswith("qkv: sound\n")
