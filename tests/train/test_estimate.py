"""What a run is said to cost, against counting by hand, what autograd really keeps, and the FLOPs torch counts."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qkv import count, spec
from qkv.families.family import find
from qkv.nn.stack import Transformer
from qkv.train.estimate import EFFICIENCY, FILLED, estimate
from qkv.train.recipe import Recipe
from qkv.train.survey import Survey

GPT2 = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64}
PLAIN = {**GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BERT = {
    "model_type": "bert", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 256, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 172, "max_position_embeddings": 64,
}  # fmt: skip
MARIAN = {**find("marian").tiny, "model_type": "marian"}
READ = Survey(records=1000, samples=2.0, tokens=20.0, whole=True, encoded=100)


def model(config: dict[str, Any]) -> spec.Model:
    return find(config["model_type"]).spec(config)


def recipe(**tables: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "model": {"config": {}},
            "data": {"train": "x"},
            "objective": {"kind": "causal"},
            "batch": {"sequences": 8, "length": 64},
            "train": {"steps": 10},
            **tables,
        }
    )


def test_steps_are_what_the_recipe_says() -> None:
    found = estimate(recipe(), model(GPT2), READ, peak=1e9)
    assert (found.steps, found.tokens_per_step, found.tokens) == (10, 160, 1600)
    assert found.seconds == pytest.approx(found.flops / (1e9 * EFFICIENCY["float32"]))
    assert any("mean of 100 of 1,000 records" in text for text in found.guesses)


@pytest.mark.parametrize(
    ("batch", "world", "steps", "tokens"),
    [
        ({"sequences": 8}, 1, 250, 160),
        ({"sequences": 8, "accumulate": 2}, 1, 125, 320),
        ({"sequences": 8, "accumulate": 2}, 2, 63, 640),
        ({"tokens": 1000}, 1, math.ceil(40_000 / (1000 * FILLED)), 900),
        ({"sequences": 8, "length": 64, "packing": "blocks"}, 1, math.ceil(40_000 / 512), 512),
        ({"tokens": 512, "length": 64, "packing": "documents"}, 1, math.ceil(40_000 / 512), 512),
    ],
)
def test_epochs(batch: dict[str, Any], world: int, steps: int, tokens: int) -> None:
    """2,000 samples of 20 tokens."""
    for epochs in (1, 3):
        found = estimate(recipe(batch=batch, train={"epochs": epochs}), model(GPT2), READ, peak=1e9, world=world)
        assert (found.steps, found.tokens_per_step) == (epochs * steps, tokens)


def test_what_is_not_known_is_not_said() -> None:
    found = estimate(recipe(train={"epochs": 1}), model(GPT2), None, peak=1e9)
    assert (found.steps, found.tokens, found.flops, found.seconds) == (None, None, None, None)
    assert found.tokens_per_step == 8 * 64
    assert any("data weren't looked at" in text for text in found.guesses)
    bad = dataclasses.replace(READ, whole=False, bad=7, why="a:1 is bad")
    said = " ".join(estimate(recipe(), model(GPT2), bad, peak=1e9).guesses)
    assert "reading stopped at 1,000 records" in said
    assert "7 of 100 records are not what they should be: a:1 is bad" in said


def test_minutes() -> None:
    found = estimate(recipe(train={"minutes": 2}), model(GPT2), READ, peak=1e9)
    assert found.seconds == pytest.approx(120, rel=0.05)


@pytest.mark.parametrize("config", [PLAIN, BERT, LLAMA, MARIAN], ids=lambda config: str(config["model_type"]))
def test_arithmetic_is_what_torch_counts(config: dict[str, Any]) -> None:
    """A causal model computes all pairs here, and is counted with half of them; so texts are short."""
    shape, length = model(config), 16
    built = Transformer(shape)
    ids = torch.randint(3, 90, (2, length))
    args = (ids, ids) if len(shape.stacks) == 2 else (ids,)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it doesn't count the fused one
        built(*args).sum().backward()
    tokens = 2 * length * len(args)
    read = dataclasses.replace(READ, tokens=float(length * len(args)))
    found = estimate(recipe(), shape, read, peak=1e9)
    assert found.flops_per_token * tokens == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_masked_models_find_words_for_masked_tokens_only() -> None:
    bert = model(BERT)
    every, some = (
        estimate(recipe(objective=said), bert, READ, peak=1e9).flops_per_token
        for said in ({"kind": "causal"}, {"kind": "masked", "rate": 0.15})
    )
    head = 2 * (64 * 64 + 64 * 300)
    assert every - some == pytest.approx(3 * 0.85 * head, rel=1e-3)


def test_frozen_parameters_and_checkpointing() -> None:
    shape = model(GPT2)
    table = 300 * 64
    found = estimate(recipe(model={"config": {}, "freeze": ["*.tokens.weight"]}), shape, READ, peak=1e9)
    assert (found.frozen, found.trained) == (table, count.parameters(shape) - table)
    whole = estimate(recipe(), shape, READ, peak=1e9)
    assert found.flops_per_token < whole.flops_per_token
    assert found.memory["gradients"] == 4 * found.trained
    again = estimate(recipe(train={"steps": 10, "checkpoint_activations": True}), shape, READ, peak=1e9)
    assert again.flops_per_token == pytest.approx(4 / 3 * whole.flops_per_token)
    assert again.memory["activations"] < whole.memory["activations"] / 2


def test_memory_of_the_optimizer() -> None:
    shape = model(GPT2)
    total, parts = count.parameters(shape), count.parameters_by_part(shape)

    def states(name: str) -> int:
        return estimate(recipe(train={"steps": 1, "optimizer": name}), shape, READ, peak=1e9).memory["optimizer"]

    assert states("adamw") == 8 * total
    assert states("muon") == 8 * total - 4 * (parts["attention"] + parts["mlp"])
    averaged = estimate(recipe(train={"steps": 1, "ema": 0.99}), shape, READ, peak=1e9)
    assert averaged.memory["weights"] == 8 * total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [PLAIN, GPT2, BERT, LLAMA])
def test_activations_are_about_what_autograd_keeps(config: dict[str, Any], dtype: str) -> None:
    shape = model(config)
    built = Transformer(shape).train()
    own = {p.untyped_storage().data_ptr() for p in built.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        built.states(*built.batch(torch.randint(0, 300, (8, 64))))
    read = dataclasses.replace(READ, tokens=64.0)
    found = estimate(recipe(train={"steps": 1, "dtype": dtype}), shape, read, peak=1e9)
    assert found.memory["activations"] == pytest.approx(sum(kept.values()), rel=0.3)


def test_to_dict_has_all() -> None:
    found = estimate(recipe(), model(GPT2), READ, peak=1e9).to_dict()
    assert found["seconds"] > 0
    assert {"parameters", "frozen", "memory", "flops", "guesses", "peak_flops"} <= found.keys()


def test_a_schedule_that_the_guessed_steps_leave_no_room_is_told() -> None:
    said = {"epochs": 1, "schedule": {"warmup": 1000}}
    found = estimate(recipe(train=said), model(GPT2), READ, peak=1e9)
    assert any(f"if there are {found.steps:,}, the run will not begin: " in text for text in found.guesses)
