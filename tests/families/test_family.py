"""The folder as a registry, and configs that a spec can't be written as."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from qkv.errors import ConfigError
from qkv.families.family import find, names
from qkv.spec import (
    RMS,
    Alibi,
    Attention,
    Block,
    Causal,
    Classify,
    DynamicNTKScaling,
    Embed,
    Full,
    Gated,
    LayerNorm,
    Learned,
    LMHead,
    MaskedLM,
    Model,
    NTKScaling,
    Plain,
    RelativeBias,
    Rotary,
    Tag,
    Window,
)
from tests.families.reference import each_family


def test_the_families_are_the_modules_of_the_folder() -> None:
    decoders = "bloom gemma gemma2 gemma3_text gpt2 gpt_bigcode gpt_neox llama mistral qwen2 qwen3"
    encoders = "albert bert distilbert electra mpnet roberta xlm-roberta"
    both = "bart marian mbart mt5 pegasus t5"
    assert sorted(names()) == sorted(f"{decoders} {encoders} {both}".split())
    assert all(find(name).name == name for name in names())


@pytest.mark.parametrize(
    "name", ["llama4", "", None, 3, "os.path", "../llama", "family", "config", "layers", "encoders", "xlm_roberta"]
)
def test_another_name_is_refused_and_nothing_imported(name: object) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=r"not a family qkv knows .*llama"):
        find(name)
    assert set(sys.modules) == before


def test_no_family_needs_torch() -> None:
    code = "from qkv.families.family import *; import sys; [find(n).spec(find(n).tiny) for n in names()]"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


@each_family
def test_the_architecture_is_written_and_read(name: str) -> None:
    family = find(name)
    config = family.config(family.spec(family.tiny))
    assert config["architectures"] == [family.architectures[0].name]
    assert config["model_type"] == name
    assert family.spec(config).family == name


def tiny(name: str) -> Model:
    return find(name).spec(find(name).tiny)


def with_stack(model: Model, **changes: Any) -> Model:
    stack = replace(model.last, **changes)
    return replace(model, decoder=stack) if model.decoder else replace(model, encoder=stack)


def with_block(model: Model, **changes: Any) -> Model:
    return with_stack(model, blocks=(replace(model.last.blocks[0], **changes),))


def with_mixer(model: Model, **changes: Any) -> Model:
    return with_block(model, mixer=replace(model.last.blocks[0].mixer, **changes))


LLAMA, GPT2, BERT, ALBERT = tiny("llama"), tiny("gpt2"), tiny("bert"), tiny("albert")
UNSAYABLE: list[tuple[Model, str]] = [
    (with_block(LLAMA, mlp=Plain(48)), "can't say Plain, only Gated"),
    (with_block(LLAMA, norm=LayerNorm(1e-6)), r"norm: RMS\(.*\) → LayerNorm"),
    (with_block(LLAMA, place="post"), "place: pre → post"),
    (with_block(LLAMA, dropout=0.1), "dropout"),
    (with_mixer(LLAMA, mask=Window(8)), "mask"),
    (with_mixer(LLAMA, mask=Full()), "mask"),
    (with_mixer(LLAMA, position=Alibi()), "position Alibi"),
    (with_mixer(LLAMA, position=Rotary(interleaved=True)), "interleaved"),
    (with_mixer(LLAMA, position=Rotary(dims=4)), "dims"),
    (with_mixer(LLAMA, position=Rotary(scaling=NTKScaling(2.0))), "another base"),
    (with_mixer(LLAMA, position=Rotary(scaling=DynamicNTKScaling(2.0, length=32))), "length"),
    (with_mixer(LLAMA, scale=1.0), "scale"),
    (with_mixer(LLAMA, softcap=20.0), "softcap"),
    (with_mixer(LLAMA, qk_norm=RMS()), "qk_norm"),
    (replace(LLAMA, decoder=replace(LLAMA.decoder, norm=None)), "norm"),
    (replace(LLAMA, decoder=replace(LLAMA.decoder, embed=Embed(scale=2.0))), "embed.scale"),
    (replace(LLAMA, context=None), "'max_position_embeddings'|context"),
    (with_block(GPT2, mlp=Gated(48)), "can't say Gated, only Plain"),
    (with_mixer(GPT2, kv_heads=2), "kv_heads"),
    (with_mixer(GPT2, scale=0.3), "scale"),
    (with_mixer(tiny("gpt_bigcode"), kv_heads=2), "'n_head'|kv_heads"),
    (with_mixer(tiny("mistral"), qkv_bias=True), "qkv_bias"),
    (with_mixer(tiny("gemma2"), scale=0.3), r"scale: 0.3015\d+ → 0.3"),
    (with_mixer(BERT, mask=Causal()), "mask: Full"),
    (with_mixer(BERT, head_dim=4), "head_dim"),
    (with_mixer(BERT, kv_heads=2), "kv_heads"),
    (with_mixer(BERT, position=Alibi()), "position"),
    (with_block(BERT, mlp=Gated(48)), "can't say Gated, only Plain"),
    (with_block(BERT, place="pre"), "place: post → pre"),
    (with_block(BERT, norm=LayerNorm(1e-3)), "norm"),
    (with_stack(BERT, norm=LayerNorm(1e-12)), "norm"),
    (with_stack(BERT, shared=True), "shared"),
    (with_stack(BERT, embed=Embed()), "can't say NoneType, only Learned"),
    (with_stack(BERT, embed=replace(BERT.last.embed, segments=0)), "'type_vocab_size'"),
    (with_stack(BERT, embed=replace(BERT.last.embed, width=16)), "width"),
    (with_stack(BERT, embed=replace(BERT.last.embed, dropout=0.0)), "dropout"),
    (with_stack(BERT, embed=replace(BERT.last.embed, position=Learned(62, offset=2))), "offset|position"),
    (with_stack(ALBERT, shared=False), "shared"),
    (with_stack(ALBERT, embed=replace(ALBERT.last.embed, width=None)), "width"),
    (with_stack(tiny("distilbert"), embed=replace(tiny("distilbert").last.embed, segments=2)), "segments"),
    (with_stack(tiny("mpnet"), position=RelativeBias(16, 128, both_ways=True)), "buckets"),
    (replace(BERT, head=MaskedLM(LayerNorm(1e-12), "relu")), "activation: gelu → relu"),
    (replace(BERT, head=Classify(("a", "b"), hidden="tanh", pick="last")), "pick"),
    (replace(BERT, head=Classify(("a", "b"))), "hidden"),
    (replace(BERT, head=Tag(("a", "b"), bias=False)), "bias"),
    (replace(BERT, head=LMHead()), "no checkpoint of the family bert has a head LMHead"),
    (replace(tiny("roberta"), head=MaskedLM(LayerNorm(1e-12), "relu")), "activation: gelu → relu"),
]


@pytest.mark.parametrize(("model", "said"), UNSAYABLE, ids=[said for _, said in UNSAYABLE])
def test_what_a_config_cannot_say_is_refused_by_name(model: Model, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find(model.family).config(model)


def test_windows_of_several_sizes_cannot_be_said() -> None:
    model = tiny("qwen2")
    block = model.decoder.blocks[0]
    assert isinstance(block, Block)
    assert isinstance(block.mixer, Attention)
    blocks = tuple(replace(block, mixer=replace(block.mixer, mask=Window(size))) for size in (4, 8))
    with pytest.raises(ConfigError, match=r"windows of several sizes: \[4, 8\]"):
        find("qwen2").config(replace(model, decoder=replace(model.decoder, blocks=blocks)))
