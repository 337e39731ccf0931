"""Checkpoints of old: masks and frequencies stored as weights, bare names, a tied head stored twice."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.errors import WeightError
from qkv.families.family import find
from tests.families.reference import GENERATING, case, close, each_family, filled, our_outputs

Tensors = dict[str, Tensor]


def bare(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): x for name, x in tensors.items()}


@dataclass
class With:
    """Tensors with more under some names, of each of two layers."""

    names: tuple[str, ...]

    def __call__(self, tensors: Tensors) -> Tensors:
        return tensors | {name.format(i=i): torch.ones(1, 1, 8, 8) for name in self.names for i in range(2)}


OLD: list[tuple[str, Callable[[Tensors], Tensors], str]] = [
    ("gpt2", bare, "bare model"),
    ("gpt2", lambda t: bare(With(("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"))(t)), "bare"),
    ("gpt2", With(("transformer.h.{i}.attn.bias",)), ""),
    ("bloom", bare, "bare model"),
    ("gpt_bigcode", With(("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias")), ""),
    ("gpt_neox", With(tuple("gpt_neox.layers.{i}.attention." + x for x in ("bias", "masked_bias"))), ""),
    ("gpt_neox", With(("gpt_neox.layers.{i}.attention.rotary_emb.inv_freq",)), ""),
    *[
        (name, With(("model.layers.{i}.self_attn.rotary_emb.inv_freq",)), "")
        for name in ("llama", "mistral", "gemma", "qwen2")
    ],
]


@pytest.mark.parametrize(("name", "age", "note"), OLD, ids=[f"{name} {i}" for i, (name, *_) in enumerate(OLD)])
def test_old_files_hold_the_same_model(name: str, age: Callable[[Tensors], Tensors], note: str) -> None:
    made = case(name, "tiny")
    ours, notes = filled(made.family, made.config, age(dict(made.tensors)))
    close(our_outputs(ours), our_outputs(made.ours), within=0)
    assert [note in said for said in notes] == [True] * bool(note)


@each_family
def test_a_tied_tensor_that_is_stored_beside_its_original(name: str) -> None:
    kinds = (spec.LMHead, spec.MaskedLM)
    made = case(name, next(a.name for a in find(name).architectures if a.kind in kinds))
    family, config = made.family, {**made.config, "tie_word_embeddings": True}
    assert family.copies
    bare = not any(key.startswith(family.prefix) for key in made.tensors)
    prefix = family.prefix if bare else ""
    copies = {copy.removeprefix(prefix): original.removeprefix(prefix) for copy, original in family.copies.items()}
    for copy, original in copies.items():
        tensors = {key: x for key, x in made.tensors.items() if key not in copies}
        tensors[copy] = tensors[original].clone()
        _, notes = filled(family, config, tensors)
        assert [copy in note and "same values" in note for note in notes] == [True]
        with pytest.raises(WeightError, match=f"{copy} holds other values"):
            filled(family, config, {**tensors, copy: tensors[original] + 1})


@pytest.mark.parametrize("name", [name for name in GENERATING if len(find(name).copies) == 1])
def test_a_head_that_is_not_there_may_be_tied(name: str) -> None:
    made = case(name, "tiny")
    ((head, _),) = made.family.copies.items()
    tensors = {key: x for key, x in made.tensors.items() if key != head}
    with pytest.raises(WeightError, match=f"{head}.*\n.*set tie_word_embeddings true"):
        filled(made.family, {**made.config, "tie_word_embeddings": False}, tensors)
