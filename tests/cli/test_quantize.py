"""`qkv quantize`: a folder in few bits, what it says of it, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

import qkv
from qkv.adapt.quantize import quantize
from qkv.nn.packed import Packed, named_weights
from tests.cli.conftest import Command, Terminal


def test_a_folder_is_written_and_generates(command: Command, folder: Path) -> None:
    ran = command("quantize", folder)
    assert ran.code == 0
    written = Path("tiny-int4")
    assert str(written) in ran.out
    words = " ".join(ran.out.split())
    assert "matrices to tensors before after mean error worst" in words
    assert "decoder.blocks.*.mlp.up int4 2 16 KiB 2.5 KiB" in words
    assert "15 tensors packed" in words
    model, direct = qkv.load(written), qkv.load(folder)
    quantize(direct)
    for name, weight in named_weights(direct).items():
        again = named_weights(model)[name]
        if isinstance(weight, Packed):
            assert torch.equal(again.blocks, weight.blocks)  # type: ignore[union-attr]
        else:
            assert torch.equal(again, weight)  # type: ignore[arg-type]
    assert model.tokenizer is not None
    said = command("generate", "The", "-m", written, "--max-tokens", 4, "--json")
    assert said.code == 0
    assert [path.name for path in Path().iterdir()] == ["tiny-int4"]


def test_json_has_every_number(command: Command, folder: Path) -> None:
    found = command("quantize", folder, "--to", "int8", "--out", "here", "--json").json
    assert (found["to"], found["group"], found["tensors"], found["path"]) == ("int8", 32, 15, "here")
    assert found["ratio"] == found["bytes_before"] / found["bytes_after"]
    up = found["kinds"]["decoder.blocks.*.mlp.up"]
    assert (up["tensors"], up["bytes_before"], up["bytes_after"]) == (2, 2 * 64 * 32 * 4, 2 * 64 * 34)
    assert 0 < up["mean_error"] <= up["worst_error"] < 0.01
    assert (found["plain"], found["source"]) == ({}, "safetensors")
    scheme = json.loads(Path("here/config.json").read_text())["quantization_config"]
    assert (scheme["scheme"], scheme["exceptions"]) == ("int8", {})


def test_a_gguf_file_is_unpacked_first_and_that_is_said(command: Command, gguf_file: Path) -> None:
    ran = command("quantize", gguf_file)
    assert ran.code == 0
    assert "the GGUF file's Q8_0 weights were unpacked first" in ran.err
    model = qkv.load("tiny-int4")
    assert {weight.kind for weight in named_weights(model).values() if isinstance(weight, Packed)} == {"Q4_1", "Q8_0"}
    assert model.tokenizer is not None


def test_a_lone_file_names_its_folder(command: Command, folder: Path) -> None:
    assert command("quantize", folder / "model.safetensors", "--json").json["path"] == "tiny-int4"


def test_a_bar_goes_to_standard_error(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert command("quantize", folder).code == 0
    assert "quantizing" in stream.getvalue()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--to", "int3"), "quantize to 'int3': it is not one of int8, int4"),
        (("--group", "64"), "the kernels hold groups of 32"),
        (("--out", "."), "is there already; choose another folder by --out"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    command: Command, folder: Path, args: tuple[str, ...], said: str
) -> None:
    ran = command("quantize", folder, *args)
    assert ran.code == 1
    assert said in ran.err
    assert list(Path().iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_before_any_work(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qkv.adapt.quantize.quantize", lambda *_: pytest.fail("worked for nothing"))
    Path("file").write_text("")
    ran = command("quantize", folder, "--out", "file/new")
    assert (ran.code, ran.err) == (
        1,
        "error: file/new can't be written: Not a directory; choose another folder by --out\n",
    )


def test_what_is_quantized_is_not_quantized_again(command: Command, folder: Path) -> None:
    command("quantize", folder)
    ran = command("quantize", "tiny-int4", "--to", "int8")
    assert ran.code == 1
    assert "tiny-int4 is int4 in groups of 32 already" in ran.err


def test_a_save_that_fails_leaves_nothing(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("qkv.load.model.write_json", full)  # weights and tokenizer are written by then
    ran = command("quantize", folder)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("tiny-int4 can't be written: No space left on device; choose another folder by --out\n")
    assert list(Path().iterdir()) == []
