"""How the native library is had: from pip, from a compiler at the first use, or not at all; never a wrong one."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qkv.kernels.build import FOLDER, compiled, fingerprint, packaged, sources

ROOT = FOLDER.parents[1]
ANSWER = '#include "number.h"\n__attribute__((visibility("default"))) int qkv_answer(void) { return NUMBER; }\n'
SAID = "compiling the native kernels once (about 20 s) …\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder of sources that are compiled in no time: one that answers, its header, and one more."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.c").write_text(ANSWER)
    (folder / "number.h").write_text("#define NUMBER 42\n")
    (folder / "more.c").write_text("int qkv_more(void) { return 1; }\n")
    return folder


def answer(path: Path) -> int:
    number: int = ctypes.CDLL(str(path)).qkv_answer()
    return number


def test_a_library_is_compiled_once_for_its_sources(tmp_path: Path, small: Path) -> None:
    cache = tmp_path / "cache"
    path, how = compiled(cache, small)
    assert how.startswith("compiled with ")
    assert answer(path) == 42
    assert compiled(cache, small) == (path, "compiled earlier")
    assert list(cache.iterdir()) == [path]
    (small / "number.h").write_text("#define NUMBER 43\n")  # a header counts as a source does
    assert answer(compiled(cache, small)[0]) == 43
    (small / "more.c").rename(small / "other.c")
    assert compiled(cache, small)[1].startswith("compiled with ")


def test_the_compiler_s_work_is_said_once(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path, small)
    assert capsys.readouterr() == ("", SAID)
    compiled(tmp_path, small)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "1")
    compiled(tmp_path / "another", small)
    assert capsys.readouterr().err == ""


def test_older_libraries_go_and_nothing_else(tmp_path: Path, small: Path) -> None:
    made = []
    for number in range(6):
        (small / "number.h").write_text(f"#define NUMBER {number}\n")
        path, _ = compiled(tmp_path, small)
        os.utime(path, (number, number))
        made.append(path)
    system = made[0].name[:-36]
    others = [
        "packed-plan9-mips-" + "0" * 16 + "-" + "0" * 16 + ".so",
        f"{system}-mine.so",
        f"{system}.txt",
        "building-now",
    ]
    for name in others:
        (tmp_path / name).write_text("")
    room = tmp_path / "building-long-ago"
    room.mkdir()
    os.utime(room, (1, 1))
    (small / "number.h").write_text("#define NUMBER 6\n")
    newest, _ = compiled(tmp_path, small)
    assert set(tmp_path.iterdir()) == {newest, *made[3:], *(tmp_path / name for name in others), small}
    assert answer(newest) == 6


@pytest.mark.parametrize("left", [0, 1, 100, 5_000, -1])
def test_a_library_that_was_cut_short_is_compiled_again(tmp_path: Path, small: Path, left: int) -> None:
    path, _ = compiled(tmp_path, small)
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    again, how = compiled(tmp_path, small)
    assert how.startswith("compiled with ")
    assert answer(again) == 42
    path.unlink()  # `answer` has its file mapped
    path.write_bytes(whole[: len(whole) // 2] + b"?" + whole[len(whole) // 2 + 1 :])
    assert compiled(tmp_path, small)[1].startswith("compiled with ")


def test_many_may_compile_at_once(tmp_path: Path, small: Path) -> None:
    code = "import sys; from pathlib import Path; from qkv.kernels.build import compiled; "
    code += "print(compiled(Path(sys.argv[1]), Path(sys.argv[2]))[0])"
    command = [sys.executable, "-c", code, str(tmp_path / "cache"), str(small)]
    with ThreadPoolExecutor(4) as pool:
        ran = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, timeout=60), range(4)))
    assert {process.stderr for process in ran} <= {"", SAID}
    assert {answer(Path(process.stdout.strip())) for process in ran} == {42}
    assert not list((tmp_path / "cache").glob("building-*"))


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_compiler_that_is_missing_fails_or_lies_is_said(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(
        OSError, match=r"CC names no-such-compiler -m64, which isn't there: install one .*apt install gcc"
    ):
        compiled(cache, small)
    monkeypatch.setenv("CC", script(tmp_path / "fails", "echo no such thing >&2; exit 3"))
    with pytest.raises(OSError, match="fails failed: no such thing"):
        compiled(cache, small)
    monkeypatch.setenv("CC", script(tmp_path / "lies", "exit 0"))
    with pytest.raises(OSError, match="lies failed: exit code 0, and nothing made"):
        compiled(cache, small)
    monkeypatch.setenv("CC", script(tmp_path / "hangs", "sleep 60"))
    monkeypatch.setattr("qkv.kernels.build._PATIENCE", 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        compiled(cache, small)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(OSError, match=r"there is no C compiler \(cc, gcc or clang\): install one"):
        compiled(cache, small)
    assert not list(cache.iterdir())
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    with pytest.raises(OSError, match="file"):
        compiled(tmp_path / "file" / "cache", small)


def test_a_compiler_may_have_options(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{shutil.which('cc')} -DUNUSED=1")
    assert answer(compiled(tmp_path / "cache", small)[0]) == 42


def test_where_there_are_no_posix_threads(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has no os.confstr either."""
    monkeypatch.setattr("qkv.kernels.build.os.name", "nt")
    monkeypatch.setattr("qkv.kernels.build.platform.system", lambda: "Windows")
    monkeypatch.delattr("os.confstr_names")
    with pytest.raises(OSError, match="need POSIX threads, which Windows doesn't have"):
        compiled(tmp_path / "cache", small)


def test_sources_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="holds no C sources"):
        fingerprint(tmp_path)


def test_the_real_sources_are_sound_c() -> None:
    """Each stands alone, without a warning."""
    for path in sources()[0]:
        command = ["cc", "-std=c11", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-fsyntax-only", str(path)]
        assert subprocess.run(command, capture_output=True, text=True).stderr == ""


# ---- pip ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project, with C sources that are compiled in no time."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    hidden = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.h", "known")
    shutil.copytree(ROOT / "qkv", copy / "qkv", ignore=hidden)
    (copy / "qkv" / "kernels" / "answer.c").write_text(ANSWER)
    (copy / "qkv" / "kernels" / "number.h").write_text("#define NUMBER 42\n")
    return copy


def made(project: Path, what: str, to: Path, **environment: str) -> Path:
    """What setuptools, called as pip calls it, makes of a project."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(to)],
        cwd=project, env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return to / ran.stdout.split()[-1]


def test_pip_s_library_is_of_the_sources_beside_it(project: Path, tmp_path: Path) -> None:
    with tarfile.open(made(project, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # 3.11.4 and on
    unpacked = next(tmp_path.glob("qkv-*/"))
    wheel = made(unpacked, "wheel", tmp_path)
    assert not wheel.name.endswith("-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    folder = tmp_path / "installed" / "qkv" / "kernels"
    assert {path.name for path in folder.glob("*.[ch]")} == {"answer.c", "number.h"}
    path = packaged(folder)
    assert path is not None
    assert answer(path) == 42
    (folder / "number.h").write_text("#define NUMBER 43\n")
    assert packaged(folder) is None, "a library of other sources was taken"


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_pip_does_without_a_compiler(project: Path, tmp_path: Path, compiler: str) -> None:
    copy = shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so"))
    with zipfile.ZipFile(made(copy, "wheel", tmp_path, CC=compiler)) as archive:
        names = archive.namelist()
    assert "qkv/kernels/answer.c" in names
    assert not [name for name in names if name.endswith(".so")]


def test_a_source_distribution_holds_every_source(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "qkv", copy / "qkv", ignore=shutil.ignore_patterns("__pycache__", "*.so", "known"))
    with tarfile.open(made(copy, "sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(ROOT).as_posix() for files in sources() for path in files} <= names
    assert {"setup.py", "qkv/kernels/build.py"} <= names
