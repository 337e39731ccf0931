"""How the native library is built: its sources, the compiler's flags, and the name that says what it was made from.

`pip install` builds it with the platform's compiler where there is one (setup.py runs this file, so nothing is imported
here but the standard library). A source checkout compiles it at the first use, into the user's cache. Either way its
name holds a hash of sources and flags: a library of other sources is never taken for this one.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-std=c11", "-pthread", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=off")  # fmt: skip
_PATIENCE = 120  # seconds for the compiler
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
    loader but ends the process. OSError, SubprocessError: it can't be compiled.
    """
    name = f"packed-{_system()}-{fingerprint(folder)}"
    for path in sorted(cache.glob(f"{name}-*.so")):
        with suppress(OSError):  # another process may be sweeping too
            if path == cache / f"{name}-{_digest(path)}.so":
                return path, "compiled earlier"
            path.unlink()  # cut short
    if os.name != "posix":
        raise OSError(f"they need POSIX threads, which {platform.system()} doesn't have")
    compiler = _compiler()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as room:
        made = _build(compiler, sources(folder)[0], Path(room))
        path = cache / f"{name}-{_digest(made)}.so"
        os.replace(made, path)  # at once: another process may be at it too
    return path, f"compiled with {compiler[0]}"


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
