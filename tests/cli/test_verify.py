"""`qkv verify`: what is wrong with a checkpoint, and exit code 1 where something is."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qkv.cli.health import Health, _look
from tests.cli.conftest import Command

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def ill(folder: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A copy of the model with some tensors changed (None: taken out)."""

    def call(**changes: Tensor | None) -> Path:
        copy = tmp_path / "ill"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        tensors = {**load_file(folder / "model.safetensors"), **{k.replace("__", "."): v for k, v in changes.items()}}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    return call


def stored(folder: Path, name: str) -> Tensor:
    return load_file(folder / "model.safetensors")[name].clone()


def test_a_sound_model(command: Command, folder: Path) -> None:
    ran = command("verify", folder)
    assert ran.code == 0
    assert ran.out.splitlines()[1:] == [
        "✓ 20 tensors (20 F32), every number finite",
        "✓ nothing missing, nothing left over, every shape fits",
        "✓ the tokenizer's 400 ids fit the embedding's 400 rows",
        "✓ a finite answer to a short text",
        f"{folder}: sound",
    ]
    found = command("verify", folder, "--json").json
    assert (found["healthy"], found["problems"], found["tensors"]) == (True, [], {"F32": 20})


def test_a_sound_gguf_file(command: Command, gguf_file: Path) -> None:
    found = command("verify", gguf_file, "--json").json
    assert (found["healthy"], found["tensors"]) == (True, {"F32": 14, "Q8_0": 6})
    assert found["checks"][0] == "20 tensors (14 F32, 6 Q8_0), every number finite"


def test_a_quantized_folder_and_its_broken_scales(command: Command, folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    assert command("quantize", folder, "--out", small).code == 0
    found = command("verify", small, "--json").json
    assert (found["healthy"], found["tensors"]) == (True, {"Q4_1": 14, "Q8_0": 1, "F32": 5})
    assert "14 Q4_1, 1 Q8_0 matrices stay packed" in found["notes"][0]
    tensors = load_file(small / "model.safetensors")
    tensors[UP][3, :2] = torch.tensor([float("nan")]).half().view(torch.uint8)
    save_file(tensors, small / "model.safetensors", metadata={"format": "pt"})
    ran = command("verify", small, "--json")
    assert ran.code == 1
    assert ran.json["problems"][0] == f"{UP} holds 32 NaN and 0 infinities among 2,048 numbers"


def problems(command: Command, path: Path) -> list[str]:
    ran = command("verify", path, "--json")
    assert ran.code == 1
    assert ran.json["healthy"] is False
    printed = command("verify", path)
    assert printed.code == 1
    assert all(f"✗ {text}" in printed.out for text in ran.json["problems"])
    return ran.json["problems"]


def test_nan_and_infinity_are_counted_where_they_are(command: Command, folder: Path, ill) -> None:  # type: ignore[no-untyped-def]
    weight = stored(folder, UP)
    weight[3, :2], weight[4, 5] = float("nan"), float("-inf")
    found = problems(command, ill(**{UP: weight}))
    assert found[0] == f"{UP} holds 2 NaN and 1 infinities among 2,048 numbers"
    assert found[1].endswith("numbers for a short text are NaN or infinite")


def test_the_zero_bias_of_every_new_bart_is_no_problem() -> None:
    health = Health(described=None)  # type: ignore[arg-type]
    _look("final_logits_bias", torch.zeros(1, 97), health)
    assert (health.problems, health.notes) == ([], ["final_logits_bias is all zeros (97 numbers)"])


def test_a_matrix_of_zeros_is_a_problem_and_a_vector_is_a_note(command: Command, folder: Path, ill) -> None:  # type: ignore[no-untyped-def]
    assert problems(command, ill(**{UP: torch.zeros(64, 32)})) == [f"{UP} is all zeros (2,048 numbers)"]
    norm = "model.layers.0.input_layernorm.weight"
    ran = command("verify", ill(**{norm: torch.zeros(32)}), "--json")
    assert ran.code == 0
    assert ran.json["notes"] == [f"{norm} is all zeros (32 numbers)"]


def test_leftovers_missing_and_misshapen_are_the_loaders_words(command: Command, folder: Path, ill) -> None:  # type: ignore[no-untyped-def]
    (text,) = problems(command, ill(**{UP: None, "extra": torch.ones(2)}))
    assert f"missing (1): {UP}" in text
    assert "unexpected (1): extra" in text
    (text,) = problems(command, ill(**{UP: stored(folder, UP).T.contiguous()}))
    assert "misshapen" in text


def test_a_head_stored_twice_is_noted(command: Command, folder: Path, ill) -> None:  # type: ignore[no-untyped-def]
    embedding = stored(folder, "model.embed_tokens.weight")
    config = (folder / "config.json").read_text()
    tied = ill(**{"lm_head.weight": embedding})
    assert '"tie_word_embeddings": true' in config
    notes = command("verify", tied, "--json").json["notes"]
    assert notes == [
        "lm_head.weight is stored beside model.embed_tokens.weight, which it is tied to, with the same values"
    ]
    (tied / "config.json").write_text(config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    notes = command("verify", tied, "--json").json["notes"]
    assert notes == ["lm_head.weight equals model.embed_tokens.weight; tied, the file would be smaller"]


def test_a_tokenizer_with_more_ids_than_rows(command: Command, folder: Path, ill) -> None:  # type: ignore[no-untyped-def]
    short = ill(**{"model.embed_tokens.weight": stored(folder, "model.embed_tokens.weight")[:399].contiguous()})
    config = short / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 400', '"vocab_size": 399'))
    (text,) = problems(command, short)
    assert "the tokenizer has ids up to 399" in text


def test_what_cannot_even_be_opened_is_an_error(command: Command, tmp_path: Path, ill) -> None:  # type: ignore[no-untyped-def]
    path = ill()
    (path / "model.safetensors").write_bytes(b"<html>")
    ran = command("verify", path, "--json")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "CorruptFile"
