"""Quantizing whole models: what transformers wrote, in 8 and 4 bits, saved and loaded again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig

import qkv
from qkv import spec
from qkv.adapt.pack import pack
from qkv.adapt.quantize import Quantized, quantize, relative_error
from qkv.errors import InputError, WeightError
from qkv.families.family import find, names
from qkv.kernels.dequantize import dequantize
from qkv.load.model import load_model, save_model
from qkv.load.weights import export
from qkv.nn.packed import Packed, named_weights, plain
from qkv.nn.stack import Transformer
from tests.families.reference import case, each_family, inputs, randomized, raw
from tests.tiny import tiny

KINDS = {"int4": "Q4_1", "int8": "Q8_0"}


def quantized(name: str, to: str, **options: Any) -> tuple[Transformer, Transformer, Quantized]:
    """A tiny model of a family with transformers' weights, itself in few bits, and what was done."""
    ours = case(name, "tiny").ours
    other = copy.deepcopy(ours)
    return ours, other, quantize(other, to, **options)


def assert_same_weights(a: Transformer, b: Transformer) -> None:
    one, other = named_weights(a), named_weights(b)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        twin = other[name]
        if isinstance(weight, Packed):
            assert isinstance(twin, Packed), name
            assert weight.kind == twin.kind, name
            assert torch.equal(weight.blocks, twin.blocks), name
        else:
            assert torch.equal(weight, twin), name


def answers(model: Transformer) -> torch.Tensor:
    ids = [[3 + (7 * i) % 90 for i in range(n)] for n in (1, 7, 12)]
    given = [inputs(model.spec, row, row[:3]) for row in ids]
    targets = [row["decoder_input_ids"] for row in given if "decoder_input_ids" in row] or None
    with torch.no_grad():
        return torch.cat([x.flatten().float() for x in model([row["input_ids"] for row in given], targets)])


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("name", "to"), [(name, "int4") for name in names()] + [(name, "int8") for name in ("llama", "gpt2", "bloom", "t5")]
)
def test_every_family_is_saved_packed_and_loaded_the_same(
    name: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other, done = quantized(name, to)
    for matrix in done.packed:
        weight = named_weights(ours)[matrix.name]
        assert isinstance(weight, torch.Tensor)
        blocks = named_weights(other)[matrix.name].blocks  # type: ignore[union-attr]
        assert torch.equal(blocks, pack(weight, KINDS[matrix.to]))
    tables = {matrix.name for matrix in done.packed if len(named_weights(ours)[matrix.name]) == ours.spec.vocab}
    assert all(matrix.to == ("int8" if matrix.name in tables else to) for matrix in done.packed)
    folder = save_model(other, tmp_path / "m")
    again, *_, notes = load_model(folder, Transformer)
    assert_same_weights(other, again)
    assert sum(isinstance(weight, Packed) for weight in named_weights(again).values()) == len(done.packed)
    assert any(KINDS[to] in note and "matrices stay packed" in note for note in notes)
    unpacked, *_ = load_model(folder, Transformer, dtype="float32")
    for parameter, weight in named_weights(other).items():
        assert torch.equal(unpacked.get_parameter(parameter), plain(weight)), parameter
    exact = answers(unpacked)
    assert off(answers(again), exact) < 0.1  # the kernels round activations to 8 bits
    with monkeypatch.context() as patched:
        patched.setattr("qkv.nn.packed.native", lambda: None)
        patched.setattr(Transformer, "cache_dtype", None)  # keys as they come
        reference, *_ = load_model(folder, Transformer)
        torch.testing.assert_close(answers(reference), exact, atol=1e-5, rtol=1e-5)
    assert off(exact, answers(ours)) < (0.04 if to == "int8" else 0.5)  # random weights of 32 inputs are the worst case
    plainly, *_ = load_model(save_model(other, tmp_path / "plain", dequantize=True), Transformer)
    assert_same_weights(plainly, unpacked)


@each_family
def test_what_cannot_be_packed_stays_and_is_named(name: str) -> None:
    ours, other, done = quantized(name, "int4")
    packed = {matrix.name for matrix in done.packed}
    for parameter, weight in named_weights(ours).items():
        kept = named_weights(other)[parameter]
        assert isinstance(kept, Packed) == (parameter in packed)
        assert (parameter in packed) + (parameter in done.plain) == (weight.ndim > 1)  # type: ignore[union-attr]
        if parameter not in packed:
            assert kept.data_ptr() != weight.data_ptr()  # type: ignore[union-attr]
            assert torch.equal(kept, weight)  # type: ignore[arg-type]
    for parameter, reason in done.plain.items():
        width = named_weights(ours)[parameter].shape[1]
        fits = "it isn't read by a product or by row" if width % 32 == 0 or "position" in parameter else str(width)
        assert fits in reason or "it isn't read" in reason
        assert any(parameter in note for note in done.notes)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox", "bart"])
def test_a_folder_of_transformers_is_quantized_and_generates(name: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(name, **raw(name, "tiny"))
    randomized(config, find(name).architectures[0]).save_pretrained(tmp_path / "theirs")
    model = qkv.load(tmp_path / "theirs")
    quantize(model, "int8")
    again = qkv.load(qkv.save(model, tmp_path / "int8"))
    asked = {"max_tokens": 6, "temperature": 0, "stop_tokens": []}
    prompt = [5, 9, 4]
    if again.spec.encoder is None:
        assert again.generate(prompt, **asked).tokens == model.generate(prompt, **asked).tokens
    whole = qkv.load(tmp_path / "int8", dtype="float32")
    assert off(answers(again), answers(whole)) < 0.03
    with pytest.raises(RuntimeError, match="mismatched"):  # they don't know the scheme; nothing wrong is ever computed
        getattr(transformers, find(name).architectures[0].name).from_pretrained(tmp_path / "int8")


def test_sizes_and_errors_are_those_of_the_files(tmp_path: Path) -> None:
    ours, other, done = quantized("llama", "int4")
    for matrix in done.packed:
        weight, twin = named_weights(ours)[matrix.name], named_weights(other)[matrix.name]
        assert isinstance(weight, torch.Tensor)
        assert isinstance(twin, Packed)
        assert matrix.shape == tuple(weight.shape)
        assert (matrix.before, matrix.after) == (
            weight.nbytes,
            weight.nbytes * (17 if matrix.to == "int8" else 10) // 64,
        )
        assert matrix.error == pytest.approx(float((twin.dequantize() - weight).norm() / weight.norm()), rel=1e-4)
    assert done.before == sum(weight.nbytes for weight in named_weights(ours).values())
    written = (save_model(other, tmp_path / "m") / "model.safetensors").read_bytes()
    assert len(written) - 8 - int.from_bytes(written[:8], "little") == done.after


def test_the_vocabulary_in_as_few_bits_as_asked(tmp_path: Path) -> None:
    _, other, done = quantized("llama", "int4", tables="int4")
    assert {matrix.to for matrix in done.packed} == {"int4"}
    said = json.loads((save_model(other, tmp_path / "m") / "config.json").read_text())["quantization_config"]
    assert set(said["exceptions"].values()) == {"plain"}
    with pytest.raises(InputError, match="int2"):
        quantized("llama", "int4", tables="int2")


def test_a_mean_of_zero_has_no_relative_error() -> None:
    zero = torch.zeros(4, 64)
    assert relative_error(zero, pack(zero, "Q4_1"), "Q4_1") == 0.0


def test_a_selection_and_two_schemes_in_one_folder(tmp_path: Path) -> None:
    ours = copy.deepcopy(case("llama", "tiny").ours)
    first = quantize(ours, "int8", selection=lambda name: "embed" in name)
    second = quantize(ours, "int4", selection=lambda name: "embed" not in name, tables="int4")
    assert {matrix.name for matrix in first.packed} == {"decoder.embed.tokens.weight"}
    folder = save_model(ours, tmp_path / "m")
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (said["scheme"], said["bits"]) == ("int4", 4)
    down = {f"model.layers.{i}.mlp.down_proj.weight": "plain" for i in range(2)}
    assert said["exceptions"] == {"model.embed_tokens.weight": "int8", **down}
    assert_same_weights(load_model(folder, Transformer)[0], ours)
    assert len(second.packed) == 13


def test_what_shares_a_tensor_is_packed_together(tmp_path: Path) -> None:
    model = copy.deepcopy(case("gpt2", "tiny").ours)
    quantize(model, "int4", selection=lambda name: name.endswith("mixer.q.weight"))
    with pytest.raises(WeightError, match=r"c_attn\.weight holds .*mixer\.q\.weight and .*must all be packed alike"):
        save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    save_model(model, tmp_path / "m", dequantize=True)
    for name, tensor in export(model, case("gpt2", "tiny").family).items():
        assert torch.equal(tensor, load_file(tmp_path / "m")[name])


def load_file(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_transposed_matrix_lies_with_its_outputs_as_rows(tmp_path: Path) -> None:
    """GPT-2 stores [inputs, outputs]; what is packed is [outputs, bytes] everywhere."""
    _, other, _ = quantized("gpt2", "int4")
    stored = load_file(save_model(other, tmp_path / "m"))["transformer.h.0.attn.c_attn.weight"]
    assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, (96, 20))
    q = named_weights(other)["decoder.blocks.0.mixer.q.weight"]
    assert torch.equal(dequantize(stored[:32].reshape(-1), "Q4_1", (32, 32)), plain(q))


def test_bfloat16_stays_that_where_it_is_plain(tmp_path: Path) -> None:
    model = copy.deepcopy(case("llama", "tiny").ours).bfloat16()
    exact = copy.deepcopy(model)
    quantize(model, "int8")
    assert model.dtype == torch.bfloat16
    assert off(answers(model), answers(exact)) < 0.05
    folder = save_model(model, tmp_path / "m")
    assert {str(x.dtype) for x in load_file(folder).values()} == {"torch.uint8", "torch.bfloat16"}
    again, *_, notes = load_model(folder, Transformer)
    assert again.dtype == torch.float32
    assert any("bfloat16 are held as float32" in note for note in notes)
    half, *_ = load_model(folder, Transformer, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not any(isinstance(weight, Packed) for weight in named_weights(half).values())


def test_a_gradient_flows_through(tmp_path: Path) -> None:
    _, other, _ = quantized("llama", "int8")
    norm = other.get_parameter("decoder.norm.weight")
    other(torch.tensor([[3, 4, 5]])).sum().backward()
    assert norm.grad is not None
    assert bool(norm.grad.any())


# --- what is refused, and then nothing has been changed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "int3"}, "quantize to 'int3': it is not one of int8, int4"),
        ({"group": 64}, "a group of 64 weights: the kernels hold groups of 32"),
        ({"selection": lambda name: False}, "nothing to quantize (no matrix is selected)"),
        ({"selection": lambda name: "mlp.down" in name}, "rows of 48 are no multiple of 32"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    model = copy.deepcopy(case("llama", "tiny").ours)
    with pytest.raises(InputError) as error:
        quantize(model, **options)
    assert said in str(error.value)
    assert not any(isinstance(weight, Packed) for weight in named_weights(model).values())


def test_a_model_without_rows_of_32() -> None:
    with pytest.raises(InputError, match=r"nothing to quantize \(decoder.embed.tokens.weight: rows of 16 are no"):
        quantize(tiny(spec.Attention(4, 2)))


def test_packed_weights_are_not_packed_again() -> None:
    _, other, _ = quantized("llama", "int4")
    with pytest.raises(InputError, match=r"14 weights are packed already .*Q8_0.*dtype='float32' first"):
        quantize(other, "int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_named(value: float) -> None:
    model = copy.deepcopy(case("llama", "tiny").ours)
    with torch.no_grad():
        model.get_parameter("decoder.blocks.1.mlp.up.weight")[5, 7] = value
    with pytest.raises(WeightError, match=r"decoder\.blocks\.1\.mlp\.up\.weight holds NaN or infinities"):
        quantize(model)
    assert not any(isinstance(weight, Packed) for weight in named_weights(model).values())


def test_numbers_beyond_16_bits_stay_plain() -> None:
    model = copy.deepcopy(case("llama", "tiny").ours)
    name = "decoder.blocks.1.mlp.up.weight"
    with torch.no_grad():
        model.get_parameter(name)[5, 7] = -70_000.0
    done = quantize(model)
    assert done.plain[name] == "16 bits hold no number beyond 65,504"
    assert name not in {matrix.name for matrix in done.packed}
