"""The model that a run begins with."""

import pytest
import torch

import qkv
from qkv import spec
from qkv.errors import ConfigError
from qkv.inputs.train import train_tokenizer
from qkv.nn.stack import Transformer
from qkv.train.begin import begin, shape, with_dropout
from qkv.train.recipe import ModelFrom

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat"], "word", special_tokens={"eos": "</s>", "unk": "<unk>"})


def said(**values):
    return ModelFrom.model_validate(values)


def test_a_config_gets_the_tokenizers_size_and_ends(tokenizer):
    model = begin(said(config=GPT2), tokenizer, None)
    assert model.spec.vocab == tokenizer.vocab_size
    assert model.generation == {"eos_token_id": tokenizer.eos[0]}
    assert model.spec.family == "gpt2"
    assert begin(said(config={**GPT2, "vocab_size": 50}), tokenizer, None).spec.vocab == 50


def test_a_vocabulary_that_is_too_small(tokenizer):
    with pytest.raises(qkv.errors.QkvError, match=r"vocab|token"):
        begin(said(config={**GPT2, "vocab_size": 3}), tokenizer, None)


def test_a_spec(tokenizer):
    block = {
        "kind": "Block",
        "mixer": {"kind": "Attention", "heads": 2, "kv_heads": 2, "mask": {"kind": "Causal"}},
        "mlp": {"kind": "Plain", "width": 32, "activation": "gelu"},
        "norm": {"kind": "RMS", "eps": 1e-5},
    }
    own = {"dim": 16, "decoder": {"kind": "Stack", "blocks": [block], "layers": 2}, "head": {"kind": "LMHead"}}
    made = shape(said(spec=own), tokenizer, None)
    assert (made.vocab, made.dim) == (tokenizer.vocab_size, 16)
    with pytest.raises(ConfigError, match="a spec names its own head"):
        shape(said(spec=own, new_head="classify"), tokenizer, ["a", "b"])


def test_a_new_head_of_a_config(tokenizer):
    bert = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    bert |= {"intermediate_size": 32, "max_position_embeddings": 32}
    made = shape(said(config=bert, new_head="classify"), tokenizer, ["bad", "good"])
    assert isinstance(made.head, spec.Classify)
    assert made.head.labels == ("bad", "good")
    with pytest.raises(ConfigError, match="none of lm"):
        shape(said(config=bert, new_head="nonsense"), tokenizer, None)


def test_dropout_is_everywhere(tokenizer):
    made = shape(said(config=GPT2, dropout=0.25), tokenizer, None)
    assert made.decoder is not None
    block = made.decoder.blocks[0]
    assert {block.dropout, block.mixer.dropout, block.mlp.dropout, made.decoder.embed.dropout} == {0.25}
    assert with_dropout(made, 0.25) == made


def test_weights_that_exist_keep_their_values(tokenizer, tmp_path):
    first = begin(said(config={**GPT2, "resid_pdrop": 0.0}), tokenizer, None)
    qkv.save(first, tmp_path / "m")
    again = begin(said(**{"from": str(tmp_path / "m"), "dropout": 0.5}), None, None)
    assert again.spec.decoder is not None
    assert again.spec.decoder.blocks[0].dropout == 0.5
    assert again.tokenizer is not None
    assert again.source is not None
    ids = [[1, 2, 3]]
    assert torch.equal(first.eval()(ids)[0], again.eval()(ids)[0])
    again.train()
    assert not torch.equal(first(ids)[0], again(ids)[0])


def test_freezing(tokenizer):
    model: Transformer = begin(said(config=GPT2, freeze=["decoder.embed.*"]), tokenizer, None)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(name.startswith("decoder.embed.") for name in frozen)
    with pytest.raises(ConfigError, match="names no parameter"):
        begin(said(config=GPT2, freeze=["nothing.*"]), tokenizer, None)
    with pytest.raises(ConfigError, match="nothing to train"):
        begin(said(config=GPT2, freeze=["*"]), tokenizer, None)
