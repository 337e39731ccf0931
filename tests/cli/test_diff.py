"""`qkv diff`: two specs side by side, and exactly where they differ."""

from pathlib import Path

from qkv.specfile import from_dict
from tests.cli.conftest import Command


def test_what_llama_changed_about_gpt2(command: Command) -> None:
    ran = command("diff", "gpt2", "smollm2-135m")
    assert ran.code == 0
    words = " ".join(ran.out.split())
    assert "gpt2 = the published config of openai-community/gpt2, no weights" in words
    assert "plain, gelu_tanh · 3,072 wide · biases gated, silu · 1,536 wide" in words
    assert "36 KiB in 16 bits 22.5 KiB in 16 bits" in words


def test_only_what_differs_is_in_colour(command: Command, monkeypatch: object) -> None:
    from rich.console import Console

    from qkv.cli.diff import table
    from qkv.cli.known import sketch

    console = Console(force_terminal=True, color_system="standard", width=100, record=True)
    with console.capture() as drawn:
        console.print(table(sketch("llama-2-7b"), sketch("llama-2-70b")))
    rows = {line.split()[0]: line for line in drawn.get().splitlines() if "\x1b[36m" in line}
    rows = {name.removeprefix("\x1b[36m").removesuffix("\x1b[0m"): line for name, line in rows.items()}
    assert "\x1b[33m" in rows["layers"]
    assert "\x1b[33m" not in rows["mask"]
    assert "\x1b[2m" in rows["mask"]


def test_one_stack_beside_two(command: Command) -> None:
    from qkv.cli.diff import table
    from qkv.cli.known import sketch

    names = {}
    for pair in (("bert-base-uncased", "t5-small"), ("t5-small", "gpt2"), ("bert-base-uncased", "gpt2")):
        ran = command("diff", *pair)
        assert (ran.code, ran.err) == (0, "")
        names[pair] = [*table(*map(sketch, pair)).columns[0].cells]
    assert names["bert-base-uncased", "t5-small"] == names["t5-small", "gpt2"]
    assert names["t5-small", "gpt2"].count("encoder mask") == names["t5-small", "gpt2"].count("decoder mask") == 1
    assert "mask" in names["bert-base-uncased", "gpt2"]


def test_json_names_each_place(command: Command) -> None:
    found = command("diff", "llama-2-7b", "llama-2-70b", "--json").json
    changes = {change["path"]: (change["a"], change["b"]) for change in found["changes"]}
    assert changes["decoder.blocks[0].mixer.kv_heads"] == (32, 8)
    assert changes["decoder.layers"] == (32, 80)
    assert found["equal"] is False
    assert (found["a"]["kv_bytes_per_token"], found["b"]["kv_bytes_per_token"]) == (524_288, 327_680)


def test_parts_in_json_can_be_read_back(command: Command) -> None:
    found = command("diff", "gpt2", "llama-2-7b", "--json").json
    position = next(c for c in found["changes"] if c["path"] == "decoder.embed.position")
    assert position["b"] is None
    assert from_dict(position["a"]).length == 1024  # type: ignore[attr-defined]


def test_equal_models_are_said_to_be_equal(command: Command, folder: Path) -> None:
    assert "the two specs are equal" in command("diff", folder, folder).out
    found = command("diff", folder, folder, "--json").json
    assert (found["equal"], found["changes"]) == (True, [])


def test_a_wrong_name_on_either_side_is_named(command: Command) -> None:
    for pair in (("gpt2", "./no"), ("./no", "gpt2")):
        ran = command("diff", *pair)
        assert (ran.code, ran.out) == (1, "")
        assert "./no: no such file or folder" in ran.err
    assert command("diff", "gpt2").code == 2
