"""Whole models through real folders: what must be refused (rows of the loader's hardening list, named in each test),
and what transformers saved, loaded and saved again."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import qkv
from qkv.adapt.quantize import quantize
from qkv.errors import ConfigError, CorruptFile, InputError, NotFound, UnsafeFile, WeightError
from qkv.families.family import find
from qkv.families.llama import FAMILY
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.nn.packed import Packed
from tests.load.hostile import confined

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def save_tiny(folder: Path, **changes: Any) -> Any:
    """A random tiny LLaMA, saved by transformers."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **FAMILY.tiny | changes))
    theirs.save_pretrained(folder)
    return theirs.eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_tiny(folder)
    return folder


@pytest.fixture
def tiny(original: Path, tmp_path: Path) -> Path:
    """A fresh copy to break."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def logits(ref: Path) -> torch.Tensor:
    with torch.no_grad():
        return qkv.load(ref)(IDS)


# --- what works -----------------------------------------------------------------------------------------------------


def test_loads_what_transformers_saved_and_saves_what_it_loads(tiny: Path, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
    ours = qkv.load(tiny)
    assert isinstance(ours, torch.nn.Module)
    assert not ours.training
    torch.testing.assert_close(ours(IDS), expected, atol=1e-5, rtol=0)
    qkv.save(ours, tmp_path / "again")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")(IDS).logits
    torch.testing.assert_close(again, expected, atol=0, rtol=0)
    with torch.no_grad():  # with gradients a norm's last bit may be another
        torch.testing.assert_close(logits(tmp_path / "again"), ours(IDS), atol=0, rtol=0)


def test_shards(tiny: Path, tmp_path: Path) -> None:
    ours = qkv.load(tiny)
    qkv.save(ours, tmp_path / "shards", max_shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    with torch.no_grad():
        torch.testing.assert_close(logits(tmp_path / "shards"), ours(IDS), atol=0, rtol=0)
    AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    next((tmp_path / "shards").glob("model-*.safetensors")).unlink()
    with pytest.raises(NotFound, match="model-0000"):
        qkv.load(tmp_path / "shards")


def test_a_lone_safetensors_file_uses_the_config_beside_it(tiny: Path) -> None:
    torch.testing.assert_close(logits(tiny / "model.safetensors"), logits(tiny), atol=0, rtol=0)


def test_dtype_is_what_is_stored_unless_asked(tiny: Path) -> None:
    assert qkv.load(tiny).dtype == torch.float32
    half = qkv.load(tiny, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    edit(tiny, lambda t: t.update({k: v.to(torch.bfloat16) for k, v in t.items() if "norm" not in k}))
    mixed = qkv.load(tiny)
    assert {p.dtype for p in mixed.parameters()} == {torch.bfloat16}
    assert any("float32 are held as bfloat16" in note for note in mixed.notes)
    with pytest.raises(InputError, match="float8"):
        qkv.load(tiny, dtype="float8")


def test_a_loaded_model_never_writes_to_its_file(tiny: Path) -> None:
    before = (tiny / "model.safetensors").read_bytes()
    model = qkv.load(tiny)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    del model
    assert (tiny / "model.safetensors").read_bytes() == before


def test_save_refuses_a_folder_with_a_model_and_a_spec_without_a_family(tiny: Path, tmp_path: Path) -> None:
    model = qkv.load(tiny)
    with pytest.raises(InputError, match="already holds a model"):
        qkv.save(model, tiny)
    model.spec = qkv.Model(model.spec.__class__(**{**model.spec.__dict__, "family": ""})).spec
    with pytest.raises(ConfigError, match="names no family"):
        qkv.save(model, tmp_path / "nowhere")


def test_generation_never_changes_what_the_model_computes(tmp_path: Path) -> None:
    """RoBERTa's positions begin behind its config's padding token, and a decoder begins with its config's start."""
    for family, said in (("roberta", {"pad_token_id": 0}), ("bart", {"decoder_start_token_id": 5})):
        torch.manual_seed(0)
        model = qkv.Model(find(family).spec(find(family).tiny))
        model.generation = said
        again = qkv.load(qkv.save(model, tmp_path / family))
        assert again.spec == model.spec
        assert again.generation.items() >= said.items()


def test_tasks_must_be_a_table(tiny: Path) -> None:
    edit_config(tiny, task_specific_params=["translate"])
    with pytest.raises(ConfigError, match=r"'task_specific_params' must be an object, got \['translate'\]"):
        qkv.load(tiny)


# --- packed weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tiny: Path, tmp_path: Path) -> Path:
    """That model in 4 bits."""
    model = qkv.load(tiny)
    quantize(model, "int4")
    return qkv.save(model, tmp_path / "packed")


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_shards_of_packed_weights(packed: Path, tmp_path: Path) -> None:
    model = qkv.load(packed)
    shards = qkv.save(model, tmp_path / "shards", max_shard_bytes=8_000)
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(logits(shards), logits(packed), atol=0, rtol=0)
    assert config_of(shards)["quantization_config"] == config_of(packed)["quantization_config"]


def test_where_nothing_multiplies_packed_weights_they_are_held_plainly(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qkv.load.model.native", lambda: None)
    model = qkv.load(packed)
    assert any("held as float32" in note for note in model.notes)
    for ours, theirs in zip(model.parameters(), qkv.load(packed, dtype="float32").parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_packed_weights_need_their_scheme_and_the_scheme_packed_weights(packed: Path, tiny: Path) -> None:
    config = config_of(packed)
    scheme = config.pop("quantization_config")
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightError, match=r"hold bytes, as packed weights do, and config\.json has no quantization_c"):
        qkv.load(packed)
    edit_config(tiny, quantization_config={**scheme, "exceptions": {}})
    with pytest.raises(WeightError, match=r"is stored as F32; by the config's quantization_config it is int4"):
        qkv.load(tiny)


def test_packed_weights_that_do_not_fit_are_refused(packed: Path) -> None:
    edit(packed, lambda t: t.update({Q: t[Q][:, :19]}))
    with pytest.raises(
        WeightError, match=r"q_proj\.weight has the shape \[32, 19\]; int4 needs rows of 20-byte blocks"
    ):
        qkv.load(packed)
    edit(packed, lambda t: t.update({Q: torch.zeros(31, 20, dtype=torch.uint8)}))
    with pytest.raises(WeightError, match=r"q_proj\.weight is \[31, 32\], should be \[32, 32\]"):
        qkv.load(packed)
    edit(packed, lambda t: t.update({Q: torch.zeros(32, 40, dtype=torch.uint8)}))
    with pytest.raises(WeightError, match=r"q_proj\.weight is \[32, 64\], should be \[32, 32\]"):
        qkv.load(packed)
    edit_config(packed, quantization_config={**config_of(packed)["quantization_config"], "scheme": "int8", "bits": 8})
    with pytest.raises(WeightError, match="int8 needs rows of 34-byte blocks"):
        qkv.load(packed)


def test_a_block_that_no_folder_keeps_is_not_saved_without_a_word(tiny: Path, tmp_path: Path) -> None:
    model = qkv.load(tiny)
    weight = Packed(torch.zeros(97, 18, dtype=torch.uint8), "Q4_0")
    del model.decoder.embed.tokens.weight
    model.decoder.embed.tokens.weight = weight
    with pytest.raises(InputError, match=r"holds Q4_0 blocks, .*dequantize=True"):
        qkv.save(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert qkv.load(qkv.save(model, tmp_path / "m", dequantize=True)).table.abs().sum() == 0


# --- L1–L3: pickles -------------------------------------------------------------------------------------------------


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_l1_l2_a_pickled_checkpoint_is_refused_and_never_run(tiny: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tiny / "model.safetensors").unlink()
    (tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin"):
        qkv.load(tiny)
    with pytest.raises((UnsafeFile, NotFound)):
        qkv.load(tiny / "pytorch_model.bin")
    assert not canary.exists()


def test_l3_other_pickles_are_ignored_with_a_note(tiny: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        (tiny / name).write_bytes(pickle.dumps(Canary(canary)))
    model = qkv.load(tiny)
    assert all(any(n in note for note in model.notes) for n in ("optimizer.pt", "rng_state.pth", "training_args.bin"))
    assert not canary.exists()


# --- L4–L9 through the whole loader ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x00" * 8, b"\xff" * 64, pickle.dumps({})])
def test_l4_to_l7_a_broken_file_is_an_error_that_names_it(original: Path, tiny: Path, content: bytes) -> None:
    qkv.load(original)  # imports everything first
    (tiny / "model.safetensors").write_bytes(content)
    with confined(tiny), pytest.raises(CorruptFile, match=r"model\.safetensors"):
        qkv.load(tiny)


def test_l8_a_shard_outside_the_folder_is_refused(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsafeFile, match="outside"):
        qkv.load(tiny)


def test_l9_a_truncated_shard_is_named(tiny: Path, tmp_path: Path) -> None:
    qkv.save(qkv.load(tiny), tmp_path / "shards", max_shard_bytes=20_000)
    shard = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CorruptFile, match=shard.name):
        qkv.load(tmp_path / "shards")


# --- L11–L15: configs and weights that don't belong together --------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}},
        {"trust_remote_code": True},
        {"_attn_implementation_internal": "org/kernel"},
        {"custom_pipelines": {"x": {"impl": "evil.Pipe"}}},
        {"model_type": "os.path"},
        {"model_type": "family"},
        {"model_type": ["llama"]},
        {"architectures": ["evil.Model"]},
        {"quantization_config": {"quant_method": "evil"}},
    ],
)
def test_l11_code_named_in_a_config_is_never_imported(original: Path, tiny: Path, changes: dict[str, Any]) -> None:
    (tiny / "modeling.py").write_text("raise SystemExit('was run')")
    edit_config(tiny, **changes)
    qkv.load(original)  # imports everything first
    with confined(tiny), pytest.raises(ConfigError, match=next(iter(changes))):
        qkv.load(tiny)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("vocab_size", 2**40),
        ("hidden_size", 0),
        ("hidden_size", -1),
        ("hidden_size", "8"),
        ("hidden_size", 8.0),
        ("hidden_size", True),
        ("num_attention_heads", 5),
        ("num_key_value_heads", 3),
        ("rope_theta", 0),
        ("rms_norm_eps", 0),
        ("attention_dropout", 2),
        ("intermediate_size", None),
        ("hidden_act", "lambda"),
    ],
)
def test_l12_numbers_are_checked_before_anything_is_allocated(tiny: Path, key: str, value: Any) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tiny / "config.json").write_text(json.dumps(config | {key: value}))
    said = {"num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "rms_norm_eps": "eps"}.get(key, key)
    said = {"num_hidden_layers": "layers", "vocab_size": "vocab"}.get(key, said)
    with pytest.raises(ConfigError, match=said):
        qkv.load(tiny)


def test_l12_nan_in_a_config_is_refused(tiny: Path) -> None:
    text = (tiny / "config.json").read_text()
    (tiny / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": NaN'))
    with pytest.raises(CorruptFile, match="NaN"):
        qkv.load(tiny)


Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({"model.layers.0.self_attn.query.weight": t.pop(Q)}), ["missing", Q, "query", "may be"]),
        (lambda t: t.pop(Q), ["missing (1)", Q]),
        (lambda t: t.update(extra=torch.ones(1)), ["unexpected (1)", "extra"]),
        (lambda t: t.update({UP: t[UP].T}), ["misshapen", UP, "transposed?"]),
        (lambda t: t.update({UP: t[UP].long()}), [UP, "int64"]),
    ],
    ids=["renamed", "missing", "extra", "transposed", "whole numbers"],
)
def test_l13_weights_that_do_not_fit_are_listed(tiny: Path, change: Any, said: list[str]) -> None:
    edit(tiny, change)
    with pytest.raises(WeightError) as error:
        qkv.load(tiny)
    for word in said:
        assert word in str(error.value)


def test_l13_another_family_and_another_head(tiny: Path) -> None:
    edit_config(tiny, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with pytest.raises((WeightError, ConfigError)):
        qkv.load(tiny)
    edit_config(tiny, model_type="llama", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(
        WeightError, match=r"missing \(1\): score.weight\n  unexpected \(1\): lm_head.weight\n.*new_head"
    ):
        qkv.load(tiny)
    edit_config(tiny, architectures=["LlamaForMultipleChoice"])
    with pytest.raises(ConfigError, match="LlamaForMultipleChoice"):
        qkv.load(tiny)
    edit_config(tiny, architectures=["LlamaForCausalLM"])
    edit(tiny, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(WeightError, match="tie_word_embeddings true"):
        qkv.load(tiny)


def test_l14_nothing_stays_on_the_meta_device(tiny: Path) -> None:
    model = qkv.load(tiny)
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert list(model.buffers()) == []


def test_l15_tied_config_and_untied_weights(tiny: Path) -> None:
    edit_config(tiny, tie_word_embeddings=True)
    with pytest.raises(WeightError, match=r"lm_head\.weight holds other values"):
        qkv.load(tiny)
    edit(tiny, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert any("same values" in note for note in qkv.load(tiny).notes)


def test_l24_nan_loads(tiny: Path) -> None:
    edit(tiny, lambda t: t[Q].view(-1)[:3].fill_(float("nan")))
    assert sum(int(p.isnan().sum()) for p in qkv.load(tiny).parameters()) == 3


def test_all_ends_of_a_text_are_saved(tiny: Path, tmp_path: Path) -> None:
    model = qkv.load(tiny)
    made = train_tokenizer(["some text to learn from, and more of it"] * 4, "char", special_tokens=["<a>", "<b>"])
    made.save(tiny)
    raw = Tokenizer.from_folder(tiny)
    model.tokenizer, model.generation = raw, {"eos_token_id": [raw.id("<a>"), raw.id("<b>")]}
    qkv.save(model, tmp_path / "ends")
    again = qkv.load(tmp_path / "ends")
    assert again.settings().stop_tokens == (raw.id("<a>"), raw.id("<b>"))
    assert json.loads((tmp_path / "ends" / "config.json").read_text())["eos_token_id"] == [raw.id("<a>"), raw.id("<b>")]
