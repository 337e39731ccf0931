"""Optimizers: which parameters are whose, and that N + N steps are 2 N through a file's bytes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Adafactor, AdamW, Muon, Optimizer

from qkv import spec
from qkv.errors import ConfigError, CorruptFile
from qkv.nn.stack import Transformer
from qkv.train import optim
from qkv.train.recipe import Train
from tests.tiny import VOCAB, tiny

KINDS = ("adamw", "muon", "adafactor")
RATES = {"adamw": 1e-2, "muon": 1e-3, "adafactor": 1e-2}


def model() -> Transformer:
    """Relative biases, tied head, biases: every kind of parameter, and two that never get a gradient."""
    torch.manual_seed(0)
    mixer = spec.Attention(4, 2, position=spec.RelativeBias(8, 20), qkv_bias=True)
    made = tiny(mixer)
    made.unused = nn.Linear(3, 3)
    return made


def recipe(kind: str, **more: Any) -> Train:
    return Train(steps=9, optimizer=kind, lr=RATES[kind], weight_decay=0.1, **more)


def steps(model: nn.Module, optimizers: list[Optimizer], numbers: range) -> None:
    for i in numbers:
        ids = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(i))
        optim.set_factor(optimizers, 1 / (1 + i))
        for one in optimizers:
            one.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
        for one in optimizers:
            one.step()


def held(optimizers: list[Optimizer], model: nn.Module) -> dict[str, Tensor]:
    return optim.tensors(optimizers, optim.names(model))[0]


def made(kind: str, n: int) -> tuple[Transformer, list[Optimizer]]:
    one = model()
    optimizers = optim.make(one, recipe(kind))
    steps(one, optimizers, range(n))
    return one, optimizers


def through_bytes(model: nn.Module, optimizers: list[Optimizer]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    live, said = optim.tensors(optimizers, optim.names(model))
    return load(save(live)), json.loads(json.dumps(said))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("kind", KINDS)
def test_n_and_n_steps_are_2n(kind: str) -> None:
    whole, ours = made(kind, 6)
    half, before = made(kind, 3)
    saved, said = through_bytes(half, before)
    again = model()
    again.load_state_dict(half.state_dict())
    optimizers = optim.make(again, recipe(kind))
    optim.restore(optimizers, optim.names(again), saved, said)
    steps(again, optimizers, range(3, 6))
    assert same(whole.state_dict(), again.state_dict())
    assert same(held(ours, whole), held(optimizers, again))
    assert not same(half.state_dict(), again.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_put_back_in_place(kind: str) -> None:
    one, optimizers = made(kind, 2)
    saved, said = through_bytes(one, optimizers)
    steps(one, optimizers, range(2, 4))
    live = held(optimizers, one)
    where = {name: value.data_ptr() for name, value in live.items()}
    assert not same(live, saved)
    optim.restore(optimizers, optim.names(one), saved, said)
    after = held(optimizers, one)
    assert same(after, saved)
    assert {name: value.data_ptr() for name, value in after.items()} == where


@pytest.mark.parametrize("kind", KINDS)
def test_new_state_is_as_torch_makes_it(kind: str) -> None:
    one, optimizers = made(kind, 1)
    said = optim.tensors(optimizers, optim.names(one))[1]
    fresh = optim.make(one, recipe(kind))
    assert not held(fresh, one)
    made_here = optim.room(fresh, optim.names(one), said)
    real = held(optimizers, one)
    assert made_here.keys() == real.keys()
    for name, value in made_here.items():
        assert (value.shape, value.dtype, value.device) == (real[name].shape, real[name].dtype, real[name].device)
        assert value.data_ptr() != real[name].data_ptr()
        assert not value.requires_grad


def test_a_state_that_the_checkpoint_lacks_goes() -> None:
    one, optimizers = made("adamw", 0)
    saved, said = through_bytes(one, optimizers)
    steps(one, optimizers, range(1))
    assert held(optimizers, one)
    optim.restore(optimizers, optim.names(one), saved, said)
    assert not held(optimizers, one)


def test_nothing_is_copied_to_be_saved() -> None:
    one, optimizers = made("adamw", 1)
    state = optimizers[0].state[one.decoder.norm.weight]
    assert held(optimizers, one)["decoder.norm.weight/exp_avg"] is state["exp_avg"]


def test_tables_and_matrices_decay_and_vectors_do_not() -> None:
    one = model()
    (adamw,) = optim.make(one, recipe("adamw"))
    assert isinstance(adamw, AdamW)
    assert adamw.defaults["fused"]
    names = optim.names(one)
    decay = {names[p]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert decay == {name: 0.1 if p.dim() >= 2 else 0.0 for name, p in one.named_parameters()}
    assert decay["decoder.embed.tokens.weight"] == 0.1
    assert decay["decoder.blocks.0.mixer.q.bias"] == 0.0


def test_as_transformers_groups_them() -> None:
    """Trainer's own function, on a model of theirs, and ours on the same model."""
    from transformers import BertConfig, BertForMaskedLM, Trainer

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    theirs = BertForMaskedLM(BertConfig(vocab_size=12, **sizes))
    expected = set(Trainer.get_decay_parameter_names(None, theirs))
    names = optim.names(theirs)
    groups = optim.make(theirs, recipe("adamw"))[0].param_groups
    assert {names[p] for group in groups for p in group["params"] if group["weight_decay"]} == expected & set(
        names.values()
    )


def test_muon_has_the_matrices_of_blocks() -> None:
    one = model()
    muon, adamw = optim.make(one, recipe("muon", muon_lr=0.03))
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    names = optim.names(one)
    by_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    parts = ("mixer.q", "mixer.k", "mixer.v", "mixer.out", "mlp.gate", "mlp.up", "mlp.down")
    assert by_muon == {f"decoder.blocks.{i}.{part}.weight" for i in range(2) for part in parts}
    assert {group["lr"] for group in muon.param_groups} == {0.03}
    by_adamw = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert by_adamw == set(names.values()) - by_muon
    assert "decoder.blocks.0.mixer.position.weight" in by_adamw  # a table, though it stands in a block


def test_adafactor_is_torch_s() -> None:
    (one,) = optim.make(model(), recipe("adafactor"))
    assert isinstance(one, Adafactor)
    assert {group["lr"] for group in one.param_groups} == {1e-2}


def test_a_chosen_subset() -> None:
    one = model()
    one.requires_grad_(False)
    one.decoder.blocks[0].mixer.q.weight.requires_grad_(True)
    for kind in KINDS:
        optimizers = optim.make(one, recipe(kind))
        assert [p.shape for o in optimizers for g in o.param_groups for p in g["params"]] == [(16, 16)]
        steps(one, optimizers, range(1))
        assert {name.rpartition("/")[0] for name in held(optimizers, one)} == {"decoder.blocks.0.mixer.q.weight"}
    one.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        optim.make(one, recipe("adamw"))


def test_tied_parameters_are_one() -> None:
    one = tiny()
    one.head.weight = one.decoder.embed.tokens.weight
    (adamw,) = optim.make(one, recipe("adamw"))
    found = [p for group in adamw.param_groups for p in group["params"]]
    assert len(found) == len({id(p) for p in found}) == len(list(one.parameters()))


def test_factor_is_of_the_first_rate() -> None:
    optimizers = optim.make(model(), recipe("muon", muon_lr=0.02))
    for factor in (0.5, 0.25):
        optim.set_factor(optimizers, factor)
        assert [group["lr"] for one in optimizers for group in one.param_groups] == [0.02 * factor] + [
            1e-3 * factor
        ] * 2


@pytest.mark.parametrize(("kind", "more"), [("adafactor", {"betas": (0.9, 0.95)}), ("adamw", {"muon_lr": 0.1})])
def test_settings_without_effect(kind: str, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"train.{next(iter(more))} does nothing"):
        optim.make(model(), recipe(kind, **more))


def test_what_does_not_fit_is_named() -> None:
    one, optimizers = made("adamw", 1)
    names = optim.names(one)
    saved, said = through_bytes(one, optimizers)
    key = "decoder.norm.weight/exp_avg"
    with pytest.raises(CorruptFile, match=f"lacks {key}"):
        optim.restore(optimizers, names, {k: v for k, v in saved.items() if k != key}, said)
    with pytest.raises(CorruptFile, match="has odd/exp_avg"):
        optim.restore(optimizers, names, {**saved, "odd/exp_avg": saved[key]}, said)
    with pytest.raises(ConfigError, match=r"norm.weight/exp_avg is float32 \(3,\) in the checkpoint, float32 \(16,\)"):
        optim.restore(optimizers, names, {**saved, key: torch.zeros(3)}, said)
    with pytest.raises(ConfigError, match="bfloat16"):
        optim.restore(optimizers, names, {**saved, key: saved[key].bfloat16()}, said)
    with pytest.raises(ConfigError, match="AdamW, the recipe's Muon and AdamW"):
        optim.restore(optim.make(one, recipe("muon")), names, saved, said)


def test_other_parameters_are_named() -> None:
    one, optimizers = made("adamw", 1)
    saved, said = through_bytes(one, optimizers)
    one.decoder.norm.weight.requires_grad_(False)
    fewer = optim.make(one, recipe("adamw"))
    with pytest.raises(ConfigError, match=r"trained decoder.norm.weight, which this one doesn't"):
        optim.restore(fewer, optim.names(one), saved, said)
    less = optim.tensors(fewer, optim.names(one))[1]
    with pytest.raises(ConfigError, match=r"didn't train decoder.norm.weight"):
        optim.restore(optimizers, optim.names(one), {}, less)
    said["optimizers"][0]["with_state"].append("odd")
    with pytest.raises(CorruptFile, match="odd"):
        optim.restore(optimizers, optim.names(one), saved, said)


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One process that is a group, so that parameters can be sharded tensors."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # of views as outputs, which nothing here writes to
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_sharded_parameters(mesh: DeviceMesh, kind: str) -> None:
    """FSDP2's: state tensors are DTensors and go back as such, and N + N steps are 2 N."""

    def sharded() -> tuple[nn.Module, list[Optimizer]]:
        one = model()
        for part in (*one.decoder.blocks, one):
            fully_shard(part, mesh=mesh)
        return one, optim.make(one, recipe(kind))

    whole, ours = sharded()
    steps(whole, ours, range(4))
    half, before = sharded()
    steps(half, before, range(2))
    live, said = optim.tensors(before, optim.names(half))
    saved = {name: value.clone() for name, value in live.items()}
    again = optim.make(half, recipe(kind))
    optim.restore(again, optim.names(half), saved, said)
    restored = held(again, half)
    for name, value in restored.items():
        assert type(value) is type(saved[name])
        assert isinstance(value, DTensor) != name.endswith("/step")
    steps(half, again, range(2, 4))
    assert same(full(whole), full(half))


def full(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in model.state_dict().items()}


def test_adafactor_refuses_sharded_parameters(mesh: DeviceMesh) -> None:
    one = model()
    fully_shard(one, mesh=mesh)
    with pytest.raises(ConfigError, match="adafactor doesn't work on sharded"):
        optim.make(one, recipe("adafactor"))
