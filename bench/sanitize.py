"""The native library under the compiler's sanitizers: `python -m bench.sanitize [address] [thread]`.

address  `sanitize.c`, then the kernels' tests, with AddressSanitizer and UndefinedBehaviorSanitizer in the library
thread   `sanitize.c` with ThreadSanitizer: callers and pool threads that touch each other's memory

Needs gcc or clang with their sanitizers' libraries; a finding ends with exit code 1 and the report.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from qkv.kernels import build
from qkv.kernels.build import FLAGS, FOLDER

ROOT = FOLDER.parents[1]
TESTS = [f"tests/kernels/test_{name}.py" for name in ("native", "ops", "check", "plan", "prompts")]
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
THREAD = ["-fsanitize=thread", "-g"]
COMPILER = os.environ.get("CC") or "cc"
# A compiler for `build.py`: the last -O counts, and with more than 1 it would take even longer.
WRAPPER = '#!/bin/sh\nexec {compiler} "$@" -O1 -Wno-psabi {flags}\n'
PYTEST = """
import sys, pytest
from qkv.kernels import build
build.packaged = lambda: None  # what pip built would be taken before the library with the sanitizer
sys.exit(pytest.main(sys.argv[1:]))
"""


def library(flags: list[str], folder: Path) -> Path:
    """The native library made with these flags, in folder/kernels, which the process with QKV_CACHE=folder takes."""
    wrapper = folder / "compiler"
    wrapper.write_text(WRAPPER.format(compiler=COMPILER, flags=" ".join(flags)))
    wrapper.chmod(0o755)
    os.environ["CC"] = str(wrapper)
    build._PATIENCE = 900  # a sanitized kernel takes the compiler minutes
    return build.compiled(folder / "kernels")[0]


def driver(flags: list[str], made: Path) -> int:
    """Compile `sanitize.c` for that library and run it: its exit code."""
    program = made.with_suffix(".driver")
    source = str(Path(__file__).with_suffix(".c"))
    subprocess.run([COMPILER, *FLAGS, *flags, f"-I{FOLDER}", source, str(made), "-o", str(program)], check=True)
    environment = os.environ | {"TSAN_OPTIONS": "die_after_fork=0"}  # it is no bug to start threads in a child
    return subprocess.run([str(program)], timeout=900, env=environment).returncode


def tests(folder: Path) -> int:
    """The kernels' tests with the library in this cache: pytest's exit code."""
    environment = os.environ | {
        "QKV_CACHE": str(folder),
        "LD_PRELOAD": ":".join(_file(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep what they have until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run([sys.executable, "-c", PYTEST, "-q", "-n", "0", *TESTS], cwd=ROOT, env=environment).returncode


def _file(name: str) -> str:
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return os.path.realpath(found.stdout.strip())


def main(which: list[str]) -> int:
    """Run those that are named, or all."""
    codes = []
    for name, flags in (("address", ADDRESS), ("thread", THREAD)):
        if name in which or not which:
            with tempfile.TemporaryDirectory() as folder:
                made = library(flags, Path(folder))
                codes.append(driver(flags, made))
                codes += [tests(Path(folder))] if name == "address" else []
    print("sanitize:", "clean" if not any(codes) else f"exit codes {codes}")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
