"""The model that a run begins with."""

import pytest
import torch

import qkv
from qkv import spec
from qkv.errors import ConfigError
from qkv.families.family import find, names
from qkv.inputs.train import train_tokenizer
from qkv.nn.stack import Transformer
from qkv.train.begin import begin, shape, with_dropout
from qkv.train.recipe import ModelFrom
from tests.train.tiny import SPEC

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


def test_a_decoders_start_is_for_generating_too(tokenizer):
    marian = {"model_type": "marian", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    marian |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    marian |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 1}
    assert begin(said(config=marian), tokenizer, None).generation["decoder_start_token_id"] == 1


def test_a_vocabulary_that_is_too_small(tokenizer):
    with pytest.raises(qkv.errors.QkvError, match=r"vocab|token"):
        begin(said(config={**GPT2, "vocab_size": 3}), tokenizer, None)


def test_a_spec(tokenizer):
    made = shape(said(spec=SPEC), tokenizer, None)
    assert (made.vocab, made.dim) == (tokenizer.vocab_size, 16)
    with pytest.raises(ConfigError, match="a spec names its own head"):
        shape(said(spec=SPEC, new_head="classify"), tokenizer, ["a", "b"])


def test_a_new_head_of_a_config(tokenizer):
    bert = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    bert |= {"intermediate_size": 32, "max_position_embeddings": 32}
    made = shape(said(config=bert, new_head="classify"), tokenizer, ["bad", "good"])
    assert isinstance(made.head, spec.Classify)
    assert made.head.labels == ("bad", "good")
    with pytest.raises(ConfigError, match="none of lm"):
        shape(said(config=bert, new_head="nonsense"), tokenizer, None)


def test_dropout_is_wherever_the_config_has_it(tokenizer):
    made = shape(said(config=GPT2, dropout=0.25), tokenizer, None)
    assert made.decoder is not None
    block = made.decoder.blocks[0]
    assert {block.dropout, block.mixer.dropout, made.decoder.embed.dropout} == {0.25}
    assert block.mlp.dropout == 0, "which GPT-2's config has no word for"
    assert {with_dropout(made, 0.25).decoder.blocks[0].mlp.dropout} == {0.25}


BERT = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
BERT |= {"intermediate_size": 32, "max_position_embeddings": 32}


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_a_new_classifier_is_for_the_objectives_problem(tokenizer, tmp_path, problem):
    wanted = {"new_head": "classify"}
    first = begin(said(config=BERT, **wanted), tokenizer, ["a", "b"], problem)
    assert first.spec.head.problem == problem
    qkv.save(begin(said(config=BERT), tokenizer, None), tmp_path / "m")
    again = begin(said(**{"from": str(tmp_path / "m")}, **wanted), None, ["a", "b"], problem)
    assert again.spec.head == first.spec.head
    qkv.save(again, tmp_path / "n")
    assert qkv.load(tmp_path / "n").spec.head.problem == problem


@pytest.mark.parametrize("family", names())
def test_a_model_with_dropout_can_be_saved(tokenizer, family):
    config = {**find(family).tiny, "model_type": family}
    made = shape(said(config=config, dropout=0.25), tokenizer, None)
    assert find(family).config(made)
    assert made != with_dropout(made, 0.0)


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
