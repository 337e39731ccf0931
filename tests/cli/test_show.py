"""`qkv show`: a model's parts and costs from its config alone."""

import json
import shutil
from pathlib import Path

import pytest

from qkv.specfile import from_toml
from tests.cli.conftest import Command

LLAMA_70B = Path(__file__).parent.parent / "data" / "llama-2-70b" / "config.json"


def test_a_config_is_enough(command: Command) -> None:
    ran = command("show", LLAMA_70B)
    assert ran.code == 0
    assert ran.err == ""
    words = " ".join(ran.out.split())
    assert "attention 64 heads of 128 · 8 key/value heads, each for 8 (grouped)" in words
    assert "parameters 68,976,648,192 68.98 B" in words
    assert "cache 320 KiB a token in bfloat16; multi-head it would be 2.5 MiB, 8 times as much" in words
    assert "memory 129.7 GiB for 1 × 4,096 tokens: 128.5 GiB weights + 1.25 GiB cache" in words


def test_json_has_the_spec_and_every_number(command: Command) -> None:
    ran = command("show", LLAMA_70B, "--json", "--batch", 8, "--context", 1000, "--dtype", "float32")
    found = ran.json
    assert found["spec"]["decoder"]["layers"] == 80
    assert found["parameters"] == sum(found["parameters_by_part"].values()) == 68_976_648_192
    assert found["kv_bytes_per_token"] == 640 * 1024
    assert found["kv_bytes_per_token_multi_head"] == 8 * 640 * 1024
    assert found["cache_bytes"] == 8 * 1000 * 640 * 1024
    assert found["weight_bytes"] == 4 * found["parameters"]
    assert found["memory_bytes"] == found["weight_bytes"] + found["cache_bytes"]
    assert (found["batch"], found["context"], found["dtype"]) == (8, 1000, "float32")


def test_toml_is_the_spec_and_can_be_shown_again(command: Command, tmp_path: Path) -> None:
    ran = command("show", "smollm2-135m", "--toml")
    path = tmp_path / "spec.toml"
    path.write_text(ran.out, encoding="utf-8")
    again = command("show", path, "--toml")
    assert again.out == ran.out
    assert from_toml(again.out).dim == 576  # type: ignore[attr-defined]


def test_a_folder_with_weights_and_notes(command: Command, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "with code")
    (tmp_path / "with code" / "modeling_x.py").write_text("raise SystemExit")
    ran = command("show", tmp_path / "with code")
    assert ran.code == 0
    assert "note: ignored modeling_x.py" in ran.out


def test_a_gguf_file_says_how_it_is_stored(command: Command, gguf_file: Path) -> None:
    ran = command("show", gguf_file)
    assert ran.code == 0
    assert "stored as   GGUF: F32 66.38 KiB, Q8_0 12.75 KiB" in ran.out


def test_a_quantized_folder_says_how_it_is_stored(command: Command, folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    assert command("quantize", folder, "--out", small).code == 0
    kept = (small / "model.safetensors").stat().st_size
    ran = command("show", small)
    assert "stored as   int4 in groups of 32: Q8_0 13.28 KiB, Q4_1 11.25 KiB, F32 640 bytes" in ran.out
    stored = command("show", small, "--json").json["stored_bytes"]
    assert list(stored) == ["Q8_0", "Q4_1", "F32"]
    assert kept - 4096 < sum(stored.values()) < kept
    assert command("show", folder, "--json").json["stored_bytes"] == {}
    (small / "model.safetensors").unlink()
    assert "stored as   int4 in groups of 32\n" in "\n".join(map(str.rstrip, command("show", small).out.split("\n")))


WRONG = [
    (["gtp2"], 1, "near it, `show` and `diff` know gpt2"),
    (["./nothing"], 1, "./nothing: no such file or folder"),
    (["gpt2", "--dtype", "int7"], 1, "dtype 'int7' is not one of float64, float32, bfloat16, float16"),
    (["gpt2", "--toml", "--json"], 1, "--toml and --json: choose one"),
    (["gpt2", "--batch", "0"], 2, "'--batch'"),
    (["gpt2", "--context", "many"], 2, "'--context'"),
]


@pytest.mark.parametrize(("args", "code", "message"), WRONG)
def test_wrong_input_is_named(command: Command, args: list[str], code: int, message: str) -> None:
    ran = command("show", *args)
    assert ran.code == code
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_broken_config_is_named(command: Command, tmp_path: Path) -> None:
    config = json.loads(LLAMA_70B.read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "num_key_value_heads": 7}))
    ran = command("show", path, "--json")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "ConfigError"
    assert "got 7" in ran.json["error"]["message"]
