"""GGUF files, converted from random models of transformers as llama.cpp converts them (`convert_hf_to_gguf.py` and
`conversion/`), give the logits of those models."""

import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from qkv.errors import ConfigError
from qkv.families.config import Reader
from qkv.families.family import find, find_gguf, names
from qkv.families.gguf import single
from qkv.kernels.blocks import BLOCKS
from qkv.load.checkpoint import GgufCheckpoint
from qkv.load.describe import describe
from qkv.load.ggml import gguf_config
from qkv.load.gguf import GgufFile, read_gguf
from qkv.load.head import with_new_head
from qkv.load.weights import export, fill
from qkv.nn.packed import Packed
from qkv.nn.stack import Transformer
from qkv.spec import Model
from tests.families.reference import close, our_outputs, randomized, their_outputs
from tests.kernels.test_dequantize import HALVES, random_blocks

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 5e5}),
    ("llama", {"head_dim": 16}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    ("llama", {"rope_scaling": YARN | {"beta_fast": 4.0, "beta_slow": 0.5}}),
    ("llama", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA3}}),
    ("mistral", {"sliding_window": None}),
    ("gemma", {}),
    ("gemma", {"num_key_value_heads": 1}),
    ("gemma2", {}),
    ("gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}),
    ("gemma3_text", {"layer_types": None, "num_hidden_layers": 6}),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 1, "final_logit_softcapping": 3.0}),
    (
        "gemma3_text",
        {
            "layer_types": None,
            "num_hidden_layers": 6,
            "rope_theta": 7e4,
            "rope_local_base_freq": 300.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    ("gemma3_text", {"layer_types": None, "sliding_window_pattern": 2}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "rope_scaling": YARN, "rope_theta": 1e6}),
    ("qwen3", {}),
    ("qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
    ("gpt2", {}),
    ("gpt2", {"untied in the file": True}),
]


def write(path: Path, model: Any, changes: dict[str, Any], kinds: Iterable[str] = ()) -> None:
    """A GGUF file of a model, as llama.cpp's converter writes it; its matrices packed as these kinds, in turn."""
    turns = itertools.cycle(kinds) if kinds else None
    config, name = model.config, model.config.model_type
    arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(name, name)
    writer = gguf.GGUFWriter(path, arch)
    gpt2_metadata(writer, config) if name == "gpt2" else metadata(writer, name, config, changes)
    table = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch.upper()), config.num_hidden_layers)
    for theirs, tensor in model.state_dict().items():
        if theirs == "lm_head.weight" and config.tie_word_embeddings:
            continue
        ours = table.get_name(theirs, (".weight", ".bias"))
        assert ours is not None, theirs
        values = converted(theirs, tensor, name, config).numpy()
        if turns is not None and values.ndim == 2 and "position" not in ours:
            raw, number = in_blocks(values, next(turns))
            writer.add_tensor(ours, raw, raw_dtype=number)
        else:
            writer.add_tensor(ours, values)
    if changes.get("untied in the file"):  # older converters copied GPT-2's embedding
        writer.add_tensor("output.weight", model.state_dict()["lm_head.weight"].numpy())
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_blocks(values: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A matrix packed as `kind` (the gguf package packs no K-types: random bytes, then, with scales of its size)."""
    number = gguf.GGMLQuantizationType[kind]
    if not kind.endswith("_K"):
        return gguf.quants.quantize(values, number), number
    raw = random_blocks(kind, len(values), values.shape[1] // 256, values.size)
    for at in HALVES[kind]:
        blocks = raw.reshape(len(values), -1, BLOCKS[kind].nbytes)
        blocks[:, :, at : at + 2] = np.array([values.std() / 512], np.float16).view(np.uint8)
    return raw, number


def gpt2_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def metadata(writer: gguf.GGUFWriter, name: str, config: Any, changes: dict[str, Any]) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "head_dim"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if name in ("llama", "mistral"):
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(config.head_dim)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                getattr(writer, f"add_rope_scaling_yarn_{key}")(rope[key])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
    if name == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        if changes.get("sliding_window") != 4096:  # files older than the key have this window
            writer.add_sliding_window(config.sliding_window)
    if name == "gemma3_text":
        gemma3_metadata(writer, config, changes)


def gemma3_metadata(writer: gguf.GGUFWriter, config: Any, changes: dict[str, Any]) -> None:
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    pattern = changes.get("sliding_window_pattern", 6)
    if pattern != 1:
        writer.add_sliding_window(config.sliding_window)
    if pattern not in (1, 6):
        writer.add_sliding_window_pattern(pattern)
    if "rope_local_base_freq" in changes:
        writer.add_float32("gemma3.rope.freq_base_swa", changes["rope_local_base_freq"])


def converted(theirs: str, tensor: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """One tensor as it lies in the file."""
    if name in ("llama", "mistral") and theirs.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in theirs else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if name.startswith("gemma") and theirs.endswith("norm.weight"):
        return tensor + 1
    if name == "gpt2" and theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return tensor.T.contiguous()
    return tensor


def llama3_factors(config: Any) -> np.ndarray:
    """What each frequency is divided by (llama.cpp's `generate_extra_tensors`)."""
    rope, factors = config.rope_parameters, []
    low, high, length = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / config.head_dim)
        smooth = min(max((length / wavelength - low) / (high - low), 0), 1)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


@pytest.mark.parametrize(("name", "changes"), CASES, ids=[f"{n} {sorted(c)}" for n, c in CASES])
def test_a_file_of_llama_cpp_gives_the_logits_of_transformers(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    said = {k: v for k, v in changes.items() if " " not in k}
    theirs = randomized(AutoConfig.for_model(name, **{**find(name).tiny, **said}))
    write(tmp_path / "model.gguf", theirs, changes)
    described = describe(tmp_path / "model.gguf")
    with torch.device("meta"):
        ours = Transformer(described.spec)
    assert described.gguf is not None
    assert described.family.gguf is not None
    weights = described.family.gguf.weights
    notes = fill(ours, weights, GgufCheckpoint(described.gguf, torch.float32), described.family)
    assert notes == []
    close(our_outputs(ours.eval()), their_outputs(theirs, ours.spec), within=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_head_on_a_file_of_llama_cpp(tied: bool, tmp_path: Path) -> None:
    """The file's names are llama.cpp's, the new head's are its family's."""
    theirs = randomized(AutoConfig.for_model("llama", **{**find("llama").tiny, "tie_word_embeddings": tied}))
    write(tmp_path / "model.gguf", theirs, {})
    described = describe(tmp_path / "model.gguf")
    wanted, architecture = with_new_head(described, "classify", ["bad", "so", "good"])
    with torch.device("meta"):
        ours = Transformer(wanted)
    assert described.gguf is not None
    table, checkpoint = described.table(architecture), GgufCheckpoint(described.gguf, torch.float32)
    notes = fill(ours, table, checkpoint, described.family, architecture=architecture, new_head=True)
    assert [note.split(":")[0].split(",")[0] for note in notes] == ["new", "left aside"][: 2 - tied]
    assert torch.equal(ours.table, theirs.model.embed_tokens.weight)
    assert ours([[5, 6, 7], [8]])[1].shape == (3,)


WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
PACKED: list[tuple[str, dict[str, Any]]] = [
    ("llama", {**WIDE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    ("llama", {**WIDE, "head_dim": 64}),
    ("gemma", {**WIDE, "head_dim": 64}),
    ("qwen2", {**WIDE, "tie_word_embeddings": True}),
    ("qwen3", {**WIDE, "head_dim": 64}),
    ("gpt2", {"n_embd": 256, "n_head": 4, "n_inner": None}),
]


@pytest.mark.parametrize("kinds", [("Q4_0", "Q4_1", "Q8_0"), ("Q4_K", "Q5_K", "Q6_K")], ids=["of 32", "of 256"])
@pytest.mark.parametrize(("name", "changes"), PACKED, ids=[f"{n} {sorted(c)}" for n, c in PACKED])
def test_a_packed_model_is_close_to_the_same_file_unpacked(
    name: str, changes: dict[str, Any], kinds: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "m.gguf", randomized(AutoConfig.for_model(name, **{**find(name).tiny, **changes})), {}, kinds)
    described = describe(tmp_path / "m.gguf")
    assert described.gguf is not None
    assert described.family.gguf is not None
    models = []
    for keep in ((), kinds):
        with torch.device("meta"):
            model = Transformer(described.spec)
        fill(
            model, described.family.gguf.weights, GgufCheckpoint(described.gguf, torch.float32, keep), described.family
        )
        models.append(model.eval())
    plain, packed = models
    held = [part for part in packed.modules() if isinstance(part, Packed)]
    assert len(held) >= sum(tensor.type in kinds for tensor in described.gguf.tensors.values())
    assert torch.equal(torch.cat([x.flatten() for x in export(packed, described.family).values()]),
                       torch.cat([x.flatten() for x in export(plain, described.family).values()]))  # fmt: skip
    for length in (1, 3, 9):
        ids = torch.arange(length)[None] % plain.spec.vocab
        with torch.no_grad():
            ours, exact = packed(ids), plain(ids)
        assert (ours - exact).norm() / exact.norm() < 0.08  # int8 activations of a random model; exact: test_native
        assert torch.isfinite(ours).all()


def test_every_family_that_has_an_architecture_there_is_converted_here() -> None:
    assert {n for n in names() if find(n).gguf is not None} == {n for n, _ in CASES} - {"mistral"}


def spec_of(file: GgufFile) -> Model:
    family, config = gguf_config(file)
    return family.spec(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.expert_count", 8),
        ("llama.rope.dimension_count", 4),
        ("llama.attention.value_length", 4),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.attention.causal", False),
        ("llama.block_count", 10**9),
        ("llama.context_length", 0),
        ("llama.rope.freq_base", 0.0),
    ],
)
def test_metadata_that_is_not_understood_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", randomized(AutoConfig.for_model("llama", **find("llama").tiny)), {})
    file = read_gguf(tmp_path / "model.gguf")
    file.metadata.update({"llama.rope.scaling.factor": 2.0, key: value})
    with pytest.raises(ConfigError, match=key.removeprefix("llama.") + r"|rope_type|num_hidden_layers"):
        spec_of(file)


@pytest.mark.parametrize(("name", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_largest_gemmas_have_a_scale_that_llama_cpp_knows_by_their_layers(name: str, layers: int) -> None:
    keys = {"embedding_length": 96, "attention.head_count": 4, "attention.key_length": 16, "context_length": 64}
    rest = {"feed_forward_length": 48, "attention.layer_norm_rms_epsilon": 1e-6}
    family = find(name)
    assert family.gguf is not None
    for block_count, scalar in ((layers, 24), (layers - 1, 16)):
        metadata = Reader({**keys, **rest, "block_count": block_count}, "test")
        assert family.gguf.config(metadata)["query_pre_attn_scalar"] == scalar


@pytest.mark.parametrize("arch", ["bloom", "", None, 7, "os"])
def test_an_unknown_architecture_is_refused_by_name(arch: object) -> None:
    with pytest.raises(ConfigError, match="gemma3, gpt2, llama, qwen2, qwen3"):
        find_gguf(arch)


@given(st.floats(2.0**-40, 2.0**30, width=32))
def test_a_float32_is_read_as_its_shortest_decimal(value: float) -> None:
    short = single(value)
    assert np.float32(short) == np.float32(value)
    assert len(repr(short)) <= len(repr(value))
    assert single(float(np.float32(1e-05))) == 1e-05
