"""How the native library is built: its sources, the compiler's flags, and the name that says what it was made from.

`pip install` builds it with the platform's compiler where there is one (setup.py runs this file, so nothing is imported
here but the standard library). A source checkout compiles it at the first use, into the user's cache. Either way its
name holds a hash of sources and flags: a library of other sources is never taken for this one.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-O2", "-std=c11", "-pthread", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=off", "-Wno-psabi")  # fmt: skip
_PATIENCE = 600  # seconds for the compiler: 15 on two idle cores, many times that where others compute
_KEPT = 3  # libraries of other sources: checkouts may share a cache
_ABANDONED = 3600  # seconds after which nobody compiles any more
_WAY_OUT = "install one (Debian: apt install gcc; macOS: xcode-select --install) or name yours in CC"


def sources(folder: Path = FOLDER) -> tuple[list[Path], list[Path]]:
    """The library's C sources and its headers. OSError: there are none."""
    found = sorted(folder.glob("*.c")), sorted(folder.glob("*.h"))
    if not found[0]:
        raise OSError(f"{folder} holds no C sources to build them from")
    return found


def fingerprint(folder: Path = FOLDER) -> str:
    """16 hexadecimal digits that change with a source, a header, their names or the flags."""
    key = hashlib.sha256(" ".join(FLAGS).encode())
    for path in [file for files in sources(folder) for file in files]:
        key.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return key.hexdigest()[:16]


def packaged(folder: Path = FOLDER) -> Path | None:
    """The library that pip built from just these sources, beside them."""
    name = f"_packed_{fingerprint(folder)}"
    return next((path for path in sorted(folder.glob(f"{name}.*")) if path.suffix in (".so", ".pyd")), None)


def compiled(cache: Path, folder: Path = FOLDER) -> tuple[Path, str]:
    """The library in the folder `cache`, compiled there if it isn't yet, and how it was had, as a phrase.

    Its name ends with a hash of its own bytes: what a full disk or a crash cut short isn't refused by the system's
    loader but ends the process. A line on standard error says that the compiler is at work, and libraries of older
    sources go then. OSError, SubprocessError: it can't be compiled.
    """
    system = f"packed-{_system()}"
    name = f"{system}-{fingerprint(folder)}"
    for path in sorted(cache.glob(f"{name}-*.so")):
        with suppress(OSError):  # another process may be sweeping too
            if path == cache / f"{name}-{_digest(path)}.so":
                return path, "compiled earlier"
            path.unlink()  # cut short
    if os.name != "posix":
        raise OSError(f"they need POSIX threads, which {platform.system()} doesn't have")
    compiler = _compiler()
    cache.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":  # torchrun's
        print("compiling the native kernels once (about 20 s) …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as room:
        made = _build(compiler, sources(folder)[0], Path(room))
        path = cache / f"{name}-{_digest(made)}.so"
        os.replace(made, path)  # at once: another process may be at it too
    _sweep(cache, system)
    return path, f"compiled with {compiler[0]}"


def _sweep(cache: Path, system: str) -> None:
    """Remove what is no longer of use in a cache: this system's libraries but the newest, and rooms left by a crash."""
    with suppress(OSError):  # another process may be at it too
        named = re.compile(rf"{re.escape(system)}(-[0-9a-f]{{16}}){{2}}\.so")
        libraries = [path for path in cache.iterdir() if named.fullmatch(path.name)]
        for path in sorted(libraries, key=lambda path: path.stat().st_mtime, reverse=True)[1 + _KEPT :]:
            path.unlink()
        for room in cache.glob("building-*"):
            if time.time() - room.stat().st_mtime > _ABANDONED:
                shutil.rmtree(room, ignore_errors=True)


def _build(compiler: list[str], files: list[Path], room: Path) -> Path:
    """The library of these sources, each compiled by a process of its own. OSError, SubprocessError: it fails."""

    def call(*arguments: str, made: Path) -> Path:
        ran = subprocess.run(
            [*compiler, *FLAGS, "-fPIC", *arguments, "-o", str(made)],
            capture_output=True, text=True, errors="replace", timeout=_PATIENCE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if ran.returncode or not made.is_file():
            said = ran.stderr.strip()[:400] or f"exit code {ran.returncode}, and nothing made"
            raise OSError(f"{shlex.join(compiler)} failed: {said}")
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda path: call("-c", str(path), made=room / f"{path.stem}.o"), files))
    return call("-shared", *map(str, objects), made=room / "packed.so")


def _compiler() -> list[str]:
    """The command that compiles C: $CC, else the first there is. OSError: none."""
    named = os.environ.get("CC")
    for command in [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]:
        if command and (found := shutil.which(command[0])):
            return [found, *command[1:]]
    missing = f"CC names {named}, which isn't there" if named else "there is no C compiler (cc, gcc or clang)"
    raise OSError(f"{missing}: {_WAY_OUT}")


def _system() -> str:
    """What the library runs on: a home may be shared by machines, and by containers with another C library."""
    known = getattr(os, "confstr_names", {})
    libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in known else None
    return "-".join([platform.system(), platform.machine(), *(libc or "").split()]).lower()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
