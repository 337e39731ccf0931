"""A mapped part of a file: the right bytes at any offset, private, and refused once the file is another one."""

import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import CorruptFile
from qkv.load.mapped import identify, map_bytes, open_regular

SIZE = 3 * mmap.ALLOCATIONGRANULARITY + 5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mapped") / "file"
    file.write_bytes(torch.arange(SIZE).mul(2654435761).remainder(251).to(torch.uint8).numpy().tobytes())
    return file


@settings(deadline=None)
@given(start=st.integers(0, SIZE), nbytes=st.integers(0, SIZE))
def test_any_part(path: Path, start: int, nbytes: int) -> None:
    nbytes = min(nbytes, SIZE - start)
    with open_regular(path) as file:
        part = map_bytes(path, identify(file), start, nbytes)
    expected = path.read_bytes()
    assert part.numpy().tobytes() == expected[start : start + nbytes]
    part.fill_(7)
    assert path.read_bytes() == expected


def test_another_file_of_the_same_name_is_refused(path: Path) -> None:
    with open_regular(path) as file:
        known = identify(file)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(CorruptFile, match="was changed after"):
        map_bytes(path, known, 0, 8)
