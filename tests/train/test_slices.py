"""Rows written by any number of parts are read by any other number, and what doesn't fit is named."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qkv.errors import CorruptFile, WeightError
from qkv.train.slices import KINDS, Slice, Slices, slice_of, span, write_slices


def parted(tensors: dict[str, torch.Tensor], parts: int, part: int) -> dict[str, Slice]:
    """What one of the parts holds, as FSDP2 deals out rows; what has no rows is everybody's."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.ndim:
            start, stop = span(len(tensor), parts, part)
            out[name] = Slice(tensor[start:stop], start, tuple(tensor.shape), parts)
        elif part == 0:
            out[name] = slice_of(tensor)
    return out


def written(folder: Path, tensors: dict[str, torch.Tensor], parts: int) -> list[Path]:
    files = [folder / f"{part}.safetensors" for part in range(parts)]
    for part, file in enumerate(files):
        write_slices(file, {n: s for n, s in parted(tensors, parts, part).items() if not s.shape or len(s.rows)})
    return files


def test_rows_are_dealt_out_as_by_torch() -> None:
    for rows in range(9):
        for parts in range(1, 6):
            theirs = [len(chunk) for chunk in torch.arange(rows).chunk(parts) if rows]
            assert [b - a for a, b in (span(rows, parts, i) for i in range(parts)) if b > a] == theirs


@given(
    rows=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    before=st.integers(1, 5),
    after=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
def test_any_parts_read_what_any_parts_wrote(tmp_path_factory, rows, before, after, dtype) -> None:
    tensors = {f"t{i}": (torch.randn(n, 3) * 9).to(dtype) for i, n in enumerate(rows) if n}
    tensors["step"] = torch.tensor(7.0)
    held = Slices(written(tmp_path_factory.mktemp("slices"), tensors, before), "here")
    whole = held.read()
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[name], tensors[name]) for name in tensors)
    for part in range(after):
        empty = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        target = {**parted(empty, after, part), "step": slice_of(empty["step"])}
        for name, own in target.items():
            held._fill(name, own)
        right = {**parted(tensors, after, part), "step": slice_of(tensors["step"])}
        assert all(torch.equal(target[name].rows, right[name].rows) for name in target)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_safetensors_reads_what_is_written(tmp_path, dtype) -> None:
    raw = torch.arange(48, dtype=torch.uint8)
    tensor = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
    file = tmp_path / "a.safetensors"
    stamp = write_slices(file, {"é": slice_of(tensor), "odd": slice_of(torch.ones(3, dtype=torch.uint8))})
    assert stamp.size == file.stat().st_size
    theirs = load_file(file)
    assert theirs["é"].dtype == dtype
    assert torch.equal(theirs["é"].view(torch.uint8), tensor.view(torch.uint8))
    assert safe_open(file, "pt").metadata() == {"format": "pt"}


def test_what_is_strided_or_empty_comes_back(tmp_path) -> None:
    tensors = {
        "t": torch.randn(4, 6).T,
        "empty": torch.empty(0, 3),
        "one": torch.tensor(2.0),
        "nan": torch.tensor([float("nan")]),
    }
    write_slices(tmp_path / "a", {name: slice_of(tensor) for name, tensor in tensors.items()})
    into = {name: torch.full_like(tensor, 5) for name, tensor in tensors.items()}
    Slices([tmp_path / "a"], "a").load(into)
    for name, tensor in tensors.items():
        torch.testing.assert_close(into[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_parameters_are_filled_in_place(tmp_path) -> None:
    layer = torch.nn.Linear(3, 2)
    write_slices(tmp_path / "a", {name: slice_of(weight) for name, weight in layer.named_parameters()})
    other = torch.nn.Linear(3, 2)
    addresses = [weight.data_ptr() for weight in other.parameters()]
    Slices([tmp_path / "a"], "a").load(dict(other.named_parameters()))
    assert torch.equal(other.weight, layer.weight)
    assert addresses == [weight.data_ptr() for weight in other.parameters()]


def test_misfits_are_all_named_before_anything_is_written(tmp_path) -> None:
    write_slices(tmp_path / "a", {name: slice_of(torch.ones(2, 3)) for name in ("same", "shape", "dtype", "theirs")})
    into = {
        "same": torch.zeros(2, 3),
        "shape": torch.zeros(3, 2),
        "dtype": torch.zeros(2, 3).half(),
        "mine": torch.zeros(1),
    }
    with pytest.raises(WeightError) as error:
        Slices([tmp_path / "a"], "the weights of step 3").load(into)
    assert str(error.value).splitlines() == [
        "the weights of step 3 doesn't fit:",
        "  missing: mine",
        "  unexpected: theirs",
        "  misfit: shape is [2, 3] torch.float32, should be [3, 2] torch.float32",
        "  misfit: dtype is [2, 3] torch.float32, should be [2, 3] torch.float16",
    ]
    assert not into["same"].any()


def test_a_missing_or_doubled_part_is_named(tmp_path) -> None:
    files = written(tmp_path, {"a": torch.randn(9, 2)}, 3)
    with pytest.raises(CorruptFile, match=r"2\.safetensors: tensor 'a' has rows from 6 on, not from 3"):
        Slices([files[0], files[2]], "w")
    with pytest.raises(CorruptFile, match="w: tensor 'a' has 6 of 9 rows: a file is missing"):
        Slices(files[:2], "w")
    with pytest.raises(CorruptFile, match="has rows from 0 on, not from 3"):
        Slices([files[0], *files], "w")


@pytest.mark.parametrize(
    "said", [{"b": [0, 2]}, {"a": [0]}, {"a": [-1, 4]}, {"a": "0"}, {"one": [0, 1]}, {"a": [True, 2]}]
)
def test_metadata_that_lie_are_refused(tmp_path, said) -> None:
    tensors = {"a": torch.ones(2, 2), "one": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a", {"format": "pt", "slices": json.dumps(said)})
    with pytest.raises(CorruptFile, match="slices: "):
        Slices([tmp_path / "a"], "a")


def test_two_files_that_disagree_are_refused(tmp_path) -> None:
    for i, rows in enumerate((torch.ones(2, 2), torch.ones(2, 3))):
        write_slices(tmp_path / str(i), {"a": Slice(rows, 2 * i, (4, *rows.shape[1:]), 2)})
    with pytest.raises(CorruptFile, match="another shape or dtype in another file"):
        Slices([tmp_path / "0", tmp_path / "1"], "a")


@pytest.mark.parametrize(
    "bad", [torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse(), torch.ones(2, dtype=torch.complex128)]
)
def test_what_the_format_can_not_hold(tmp_path, bad) -> None:
    with pytest.raises(WeightError, match=r"'a' .* can't be saved as safetensors"):
        write_slices(tmp_path / "a", {"a": slice_of(bad)})
