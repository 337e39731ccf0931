"""Every byte of a checkpoint is vouched for, and no file that isn't one of it is read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import CorruptFile, InputError, NotFound
from qkv.train import manifest
from qkv.train.manifest import MANIFEST, STATE, check_json, check_stem, check_whole, stem_of, steps
from qkv.train.slices import Stamp, slice_of, write_bytes, write_slices


def made(folder: Path, step: int = 7) -> Path:
    path = folder / manifest.name_of(step)
    path.mkdir(parents=True)
    stamps = {
        "weights.safetensors": write_slices(path / "weights.safetensors", {"a": slice_of(torch.arange(5.0))}),
        STATE: write_bytes(path / STATE, iter([b'{"step": ', b"7}"])),
    }
    manifest.write_manifest(path, step, stamps)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("whole"))


def test_a_whole_one_is_whole(whole) -> None:
    assert check_whole(whole, 7).keys() == {"weights.safetensors", STATE}


@given(file=st.sampled_from(["weights.safetensors", STATE, MANIFEST]), where=st.floats(0, 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(whole, tmp_path_factory, file: str, where: float, bit: int) -> None:
    broken = tmp_path_factory.mktemp("flip") / whole.name
    shutil.copytree(whole, broken)
    raw = bytearray((broken / file).read_bytes())
    at = min(int(where * len(raw)), len(raw) - 1)
    blank = file == MANIFEST and chr(raw[at] ^ (1 << bit)) in " \t\r\n"
    raw[at] ^= 1 << bit
    (broken / file).write_bytes(raw)
    if blank:
        return  # another space between the manifest's words may change nothing
    with pytest.raises((CorruptFile, NotFound)) as error:
        check_whole(broken, 7)
    assert str(broken) in str(error.value)


@pytest.mark.parametrize("file", ["weights.safetensors", STATE, MANIFEST])
@pytest.mark.parametrize("length", [0, 10, None])
def test_a_short_or_missing_file_is_named(whole, tmp_path, file: str, length: int | None) -> None:
    broken = tmp_path / whole.name
    shutil.copytree(whole, broken)
    if length is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes((broken / file).read_bytes()[:length])
    with pytest.raises((CorruptFile, NotFound), match=file):
        check_whole(broken, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "not a manifest of this version"),
        ({"step": 8}, "speaks of step 8, in the folder of step 7"),
        ({"extra": 1}, "not a manifest"),
        ({"files": []}, "files must be an object"),
        ({"files": {}}, "lists no state.json"),
        ({"files": {"../a.safetensors": {"bytes": 1, "sha256": ""}}}, "is no entry of a file"),
        ({"files": {"weights.pt": {"bytes": 1, "sha256": ""}}}, "is no entry of a file"),
        ({"files": {STATE: {"bytes": 1}}}, "is no entry of a file"),
        ({"files": {STATE: {"bytes": "12", "sha256": ""}}}, "bytes, and '12' were written"),
    ],
)
def test_a_manifest_that_says_something_else(tmp_path, change, message: str) -> None:
    path = made(tmp_path)
    said = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**said, **change}))
    with pytest.raises(CorruptFile, match=message):
        check_whole(path, 7)


def test_steps_are_read_off_the_names(tmp_path) -> None:
    names = ["step-00000002", "step-00000010", "step-00000010.old", "step-123456789", "step-3", "tmp-step-00000011"]
    for name in [*names, "aside-step-00000012", "step-00000001.other"]:
        (tmp_path / name).mkdir()
    assert [(path.name, step) for path, step in steps(tmp_path)] == [
        ("step-123456789", 123456789),
        ("step-00000010", 10),
        ("step-00000010.old", 10),
        ("step-00000002", 2),
    ]
    assert steps(tmp_path / "nowhere") == []


def test_stems() -> None:
    assert stem_of("weights.safetensors") == stem_of("weights-00001-of-00002.safetensors") == "weights"
    assert stem_of("state.json") is stem_of("../weights.safetensors") is stem_of("weights-1-of-2.safetensors") is None
    check_stem("ema_2")
    for stem in ("", "weights-00001-of-00002", "../a", "A", "2a", "a.b"):
        with pytest.raises(InputError, match="must be called by a word"):
            check_stem(stem)


def test_a_state_that_json_would_change() -> None:
    check_json({"a": [1, 2.5, None, True, "é", {"b": (1,)}]}, "state")
    for bad, where in (
        ({"a": {1: 2}}, r"state\.a: the key 1 is no string"),
        ({"a": [0, float("nan")]}, r"state\.a\[1\] is nan"),
        ({"a": float("-inf")}, "state.a is -inf"),
        ({"a": torch.tensor(1)}, r"state\.a is tensor\(1\), which JSON can't hold"),
    ):
        with pytest.raises(InputError, match=where):
            check_json(bad, "state")


def test_a_stamp_is_of_the_bytes(tmp_path) -> None:
    import hashlib

    assert write_bytes(tmp_path / "a", iter([b"ab", b"c"])) == Stamp(3, hashlib.sha256(b"abc").hexdigest())
