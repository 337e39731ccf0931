"""Safetensors: agreement with the library in both directions, and hardening rows L4–L7, L9 and L24."""

import json
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qkv.errors import CorruptFile, NotFound, UnsafeFile, WeightError
from qkv.load.folder import INDEX, SINGLE
from qkv.load.safetensors import DTYPES, read_header, read_shards, save_safetensors, save_sharded
from tests.load.hostile import confined


def build(header: Any, data: int = 8, length: int | None = None) -> bytes:
    """A file with this header (bytes, JSON text, or a value to encode) and `data` zero bytes; `length` may lie."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TINY = build(
    {"__metadata__": {"format": "pt"}, "x": entry("F32", [1, 2], [2, 10]), "y": entry("F16", [], [0, 2])}, data=10
)


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(ours.contiguous().view(-1).view(torch.uint8), theirs.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_both_ways(tmp_path: Path, dtype: str) -> None:
    kind = getattr(torch, DTYPES[dtype][0])
    raw = torch.arange(2 * 3 * DTYPES[dtype][1], dtype=torch.uint8) % (2 if dtype == "BOOL" else 255)
    tensors = {
        "a.weight": raw.view(kind).view(2, 3),
        "é": raw.clone().view(kind)[0],
        "none": torch.empty(0, 5, dtype=kind),
    }
    save_file(tensors, tmp_path / "theirs", {"note": "ü"})
    header = read_header(tmp_path / "theirs")
    assert header.metadata == {"note": "ü"}
    assert {name: info.dtype for name, info in header.tensors.items()} == dict.fromkeys(tensors, dtype)
    for name, tensor in tensors.items():
        assert_same(header.read(name), tensor)
    save_safetensors(tmp_path / "ours", tensors)
    for name, tensor in load_file(tmp_path / "ours").items():
        assert_same(tensor, tensors[name])
    with safetensors.safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tensor_is_the_file_s_pages_and_the_file_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_safetensors(path, {"w": torch.ones(1 << 22)})
    header = read_header(path)
    with confined(tmp_path, megabytes=8):
        big = header.read("w")
    big[0] = 5
    assert big[0] == 5
    assert header.read("w")[0] == 1


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = {"a": entry("U8", [1], [0, 1]), "b": entry("F64", [1], [1, 9])}
    file = read_header(write(tmp_path / "m", build(header, 0) + b"\7" + struct.pack("<d", 2.5)))
    assert file.read("a").tolist() == [7]
    assert (file.read("b") + 0).tolist() == [2.5]


def test_nan_and_infinity_load_as_they_are(tmp_path: Path) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf")])
    save_safetensors(tmp_path / "m", {"w": values})
    assert_same(read_header(tmp_path / "m").read("w"), values)


def test_a_bool_is_0_or_1(tmp_path: Path) -> None:
    file = read_header(write(tmp_path / "m", build({"flag": entry("BOOL", [1], [0, 1])}, 0) + b"\7"))
    with pytest.raises(CorruptFile, match="'flag' is BOOL"):
        file.read("flag")


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no tensor 'z'"):
        read_header(write(tmp_path / "m", TINY)).read("z")


DEEP = "[" * 100_000
BROKEN = {
    # L4: the length
    "empty": (b"", "0 bytes are too few"),
    "7 bytes": (bytes(7), "7 bytes are too few"),
    "N = 0": (bytes(8), "header of 0 bytes"),
    "N > file": (build("{}", 0, length=3), "3 bytes, but only 2 follow"),
    "N = 100 MB + 1": (build("{}", 0, length=100_000_001), "limit is 100000000"),
    "N = 2^63": (build("{}", 0, length=2**63), "limit is 100000000"),
    "N = 2^64 - 1": (build("{}", 0, length=2**64 - 1), "limit is 100000000"),
    # L5: the text
    "not UTF-8": (build(b'{"\xff": 1}'), "not UTF-8"),
    "not JSON": (build('{"x"'), "not valid JSON"),
    "no dict": (build("[1, 2]"), "does not start with '{'"),
    "text after the dict": (build("{} {}", 0), "not valid JSON"),
    "NaN": (build('{"x": NaN}'), "not valid JSON"),
    "a number of 5000 digits": (build('{"x": ' + "9" * 5000 + "}"), "not valid JSON"),
    "the same name twice": (build('{"x": {}, "x": {}}'), "'x' appears 2 times"),
    "the same field twice": (build('{"x": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' appears 2 times"),
    "nested 1e5 deep": (build('{"x": ' + DEEP), "nested more than"),
    "nested 1e5 deep, closed": (build('{"x": ' + DEEP + "]" * 100_000 + "}"), "nested more than"),
    "metadata is a list": (build({"__metadata__": []}, 0), "__metadata__ must map"),
    "metadata is null": (build({"__metadata__": None}, 0), "__metadata__ must map"),
    "metadata holds a number": (build({"__metadata__": {"a": 1}}, 0), "__metadata__ must map"),
    "a lone surrogate": (build('{"\\ud800": 1}', 0), "not valid Unicode"),
    # L6: the tensors
    "no dict of fields": (build({"x": [1]}), "tensor 'x' must have dtype, shape and data_offsets"),
    "a field is missing": (build({"x": {"dtype": "F32", "shape": [2]}}), "tensor 'x' must have"),
    "an unknown field": (build({"x": {**entry(), "stride": [1]}}), "tensor 'x' must have"),
    "unknown dtype": (build({"x": entry("F7")}), "'x' has the unknown dtype 'F7'"),
    "dtype is a number": (build({"x": entry(7)}), "'x' has the unknown dtype 7"),
    "dtype is a list": (build({"x": entry([])}), "'x' has the unknown dtype []"),
    "shape is a number": (build({"x": entry(shape=2)}), "'x': shape must be"),
    "negative size": (build({"x": entry(shape=[-2])}), "'x': shape must be"),
    "float size": (build({"x": entry(shape=[2.0])}), "'x': shape must be"),
    "bool size": (build({"x": entry(shape=[True, 2])}), "'x': shape must be"),
    "size 2^63": (build({"x": entry(shape=[2**63])}), "'x': shape must be"),
    "65 dimensions": (build({"x": entry(shape=[1] * 64 + [2])}), "at most 64"),
    "product overflows": (build({"x": entry(shape=[2**32, 2**32])}), "'x': shape [4294967296, 4294967296] overflows"),
    "product overflows to 0": (build({"x": entry(shape=[2**62, 8, 0], offsets=[0, 0])}), "overflows"),
    "a million sizes": (build({"x": entry(shape=[2**62] * 1_000_000)}), "'x': shape must be"),
    "offsets inverted": (build({"x": entry(offsets=[8, 0])}), "'x': data_offsets must be"),
    "one offset": (build({"x": entry(offsets=[8])}), "'x': data_offsets must be"),
    "negative offset": (build({"x": entry(offsets=[-8, 0])}), "'x': data_offsets must be"),
    "float offset": (build({"x": entry(offsets=[0, 8.0])}), "'x': data_offsets must be"),
    "offsets 2^64": (build({"x": entry(offsets=[2**64, 2**64 + 8])}), "'x': data_offsets must be"),
    "fewer bytes than elements": (build({"x": entry(shape=[3])}), "'x': F32 [3] needs 12 bytes, and has 8"),
    "more bytes than elements": (build({"x": entry(shape=[1])}), "'x': F32 [1] needs 4 bytes, and has 8"),
    "past the end": (build({"x": entry(shape=[3], offsets=[0, 12])}), "'x' ends at byte"),
    "a gap before": (build({"x": entry(shape=[1], offsets=[4, 8])}), "4 bytes before tensor 'x'"),
    "a gap between": (
        build({"y": entry(shape=[1], offsets=[8, 12]), "x": entry(shape=[1], offsets=[0, 4])}, 12),
        "4 bytes before tensor 'y'",
    ),
    "overlap": (build({"x": entry(), "y": entry(offsets=[4, 12])}, 12), "'x' and 'y' overlap"),
    "the same place": (build({"x": entry(), "y": entry()}), "'x' and 'y' overlap"),
    "trailing bytes": (build({"x": entry()}, 9), "1 bytes after the last tensor"),
    "bytes and no tensor": (build({}, 1), "1 bytes after the last tensor"),
    # L7: other files
    "zip": (b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(99), "looks like a zip archive"),
    "pickle": (b"\x80\x02}q\0X\x05\0\0\0" + bytes(99), "looks like a pickle"),
    "framed pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0" + bytes(99), "looks like a pickle"),
    "HTML": (b"<!DOCTYPE html><html>Not found</html>", "looks like HTML: failed download?"),
    "HTML after a line": (b"\n\n<html>" + bytes(99), "looks like HTML: failed download?"),
    "JSON": (b'{"error": "Repository not found"}', "looks like JSON: failed download?"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "looks like a Git LFS pointer"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(99), "looks like GGUF"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, case: str) -> None:
    raw, message = BROKEN[case]
    path = write(tmp_path / "broken.safetensors", raw)
    with pytest.raises(CorruptFile) as error, confined(tmp_path, megabytes=64 + len(raw) // 10**6):
        read_header(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe", tmp_path / "nul\0"):
        with pytest.raises(NotFound, match=str(tmp_path)), confined(tmp_path):
            read_header(path)


def only_corrupt(path: Path, raw: bytes) -> None:
    """CorruptFile, or tensors that the safetensors library reads too, and in the same way."""
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except CorruptFile:
        return
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == set(header.tensors)
        for name in file.keys():  # noqa: SIM118 (safe_open is not a mapping)
            try:
                tensor = header.read(name)
            except CorruptFile as error:
                assert "BOOL" in str(error)  # noqa: PT017
            else:
                assert_same(tensor, file.get_tensor(name))


def test_cut_anywhere(tmp_path: Path) -> None:
    with confined(tmp_path):
        for length in range(len(TINY)):
            path = write(tmp_path / "cut", TINY[:length])
            with pytest.raises(CorruptFile):
                read_header(path)
    assert read_header(write(tmp_path / "whole", TINY)).tensors.keys() == {"x", "y"}


def test_every_bit_flipped(tmp_path: Path) -> None:
    with confined(tmp_path, seconds=20):
        for at in range(len(TINY)):
            for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                only_corrupt(tmp_path / "flipped", TINY[:at] + bytes([TINY[at] ^ mask]) + TINY[at + 1 :])


FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F4", "f32", 1, None]),
        "shape": st.one_of(st.lists(st.integers(-1, 4), max_size=3), st.lists(st.sampled_from([0, 2**62, 2**63, 1.0]))),
        "data_offsets": st.lists(st.integers(-1, 16), min_size=1, max_size=3),
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), FIELDS, max_size=3), st.integers(0, 16))
def test_any_header(tmp_path: Path, header: dict[str, Any], data: int) -> None:
    with confined(tmp_path):
        only_corrupt(tmp_path / "any", build(header, data))


def test_a_file_that_changes_after_its_header_was_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m", TINY)
    header = read_header(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptFile, match="changed after its header"):
        header.read("x")
    path.unlink()
    with pytest.raises(NotFound):
        header.read("x")


def shards(folder: Path) -> dict[str, torch.Tensor]:
    """Three shards of one tensor each, and their index."""
    tensors = {f"layer.{i}": torch.full((4,), float(i)) for i in range(3)}
    save_sharded(folder, tensors, max_shard_bytes=20)
    return tensors


def test_sharded_save_and_load(tmp_path: Path) -> None:
    tensors = shards(tmp_path)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index == {"metadata": {"total_size": 48}, "weight_map": dict(zip(tensors, names, strict=True))}
    read = {name: header.read(name) for header in read_shards(tmp_path / INDEX) for name in header.tensors}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_shard_is_full_but_not_over(tmp_path: Path) -> None:
    sizes = [3, 5, 9, 1, 7]
    tensors = {str(i): torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    paths = save_sharded(tmp_path, tensors, max_shard_bytes=8)
    assert [[*read_header(path).tensors] for path in paths] == [["0", "1"], ["2"], ["3", "4"]]
    (single,) = save_sharded(tmp_path / "one", tensors)
    assert [path.name for path in (tmp_path / "one").iterdir()] == [single.name] == [SINGLE]


def remove(folder: Path, number: int) -> Path:
    path = folder / f"model-0000{number}-of-00003.safetensors"
    path.unlink()
    return path


def truncate(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def replace(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_safetensors(folder / "model-00002-of-00003.safetensors", tensors)


ONE = torch.full((4,), 1.0)
DISAGREEING: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a shard is missing": (lambda f: remove(f, 2), ["model-00002-of-00003.safetensors can't be opened"]),
    "two shards are missing": (lambda f: (remove(f, 1), remove(f, 3)), ["model-00001-of", "model-00003-of"]),
    "a shard is truncated": (truncate, ["model-00002-of-00003.safetensors: tensor 'layer.1' ends at byte"]),
    "a shard lacks a tensor": (
        lambda f: replace(f, {}),
        ["model-00002-of-00003.safetensors lacks the tensor 'layer.1'"],
    ),
    "a tensor too many": (
        lambda f: replace(f, {"layer.1": ONE, "extra": ONE + 1}),
        ["holds the tensor 'extra', which the index does not list"],
    ),
    "a tensor in two shards": (
        lambda f: replace(f, {"layer.1": ONE, "layer.2": ONE + 1}),
        ["tensor 'layer.2' is in model-00002-of-00003.safetensors and in model-00003-of-00003.safetensors"],
    ),
    "all at once": (
        lambda f: (remove(f, 1), replace(f, {"extra": ONE})),
        ["3 problem(s)", "model-00001-of", "lacks the tensor 'layer.1'", "holds the tensor 'extra'"],
    ),
}


@pytest.mark.parametrize("case", DISAGREEING)
def test_an_index_and_its_shards_must_agree(tmp_path: Path, case: str) -> None:
    shards(tmp_path)
    change, messages = DISAGREEING[case]
    change(tmp_path)
    with pytest.raises(CorruptFile) as error, confined(tmp_path):
        read_shards(tmp_path / INDEX)
    for message in [str(tmp_path / INDEX), *messages]:
        assert message in str(error.value)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "%2e%2e.safetensors", "link.safetensors"])
def test_no_shard_outside_the_folder_is_opened(tmp_path: Path, name: str) -> None:
    outside = write(tmp_path / "outside.safetensors", TINY)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.safetensors").symlink_to(outside)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UnsafeFile), confined(folder):
        read_shards(folder / INDEX)


def test_views_are_saved_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    row = (base + 2)[1]
    parameter = torch.nn.Parameter(base + 1)
    save_safetensors(tmp_path / "m", {"turned": base.T, "part": base[:, 1], "row": row, "parameter": parameter})
    read = load_file(tmp_path / "m")
    assert torch.equal(read["row"], row)
    assert torch.equal(read["turned"], base.T)
    assert torch.equal(read["part"], base[:, 1])
    assert torch.equal(read["parameter"], parameter)


TIED = torch.ones(2)
UNSAVABLE: dict[str, dict[str, torch.Tensor]] = {
    "shared memory": {"a": TIED, "b": TIED},
    "meta": {"a": torch.ones(2, device="meta")},
    "sparse": {"a": torch.eye(2).to_sparse()},
    "complex128": {"a": torch.ones(2, dtype=torch.complex128)},
    "reserved name": {"__metadata__": TIED},
    "lone surrogate": {"\ud800": TIED},
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_cannot_be_saved_leaves_the_old_file_and_nothing_else(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "m", b"old")
    with pytest.raises(WeightError):
        save_safetensors(path, UNSAVABLE[case])
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "m", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="can't be written"):
            save_safetensors(path, {"a": torch.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_saved_file_has_the_usual_permissions(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "m", {"a": TIED})
    usual = write(tmp_path / "usual", b"")
    assert (tmp_path / "m").stat().st_mode == usual.stat().st_mode


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    write(tmp_path / "m", TINY)
    code = """import sys, qkv.load.gguf, qkv.load.safetensors
qkv.load.safetensors.read_header(sys.argv[1])
assert "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True, cwd=Path(__file__).parents[2])
