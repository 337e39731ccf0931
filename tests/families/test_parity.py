"""Each family and variant against transformers: the same logits, from its files and back into them."""

import torch

from qkv.families.family import find, names
from qkv.load.weights import expand, export
from tests.families.reference import case, close, each_case, our_logits, raw, reloaded, their_logits


@each_case
def test_logits_are_those_of_transformers(name: str, variant: str) -> None:
    made = case(name, variant)
    theirs = their_logits(made.theirs)
    assert 0.1 < torch.cat(theirs).std() < 20
    close(our_logits(made.ours), theirs, within=1e-4)


@each_case
def test_transformers_loads_what_is_written(name: str, variant: str) -> None:
    made = case(name, variant)
    close(their_logits(reloaded(made.ours, made.family)), their_logits(made.theirs), within=1e-5)


@each_case
def test_a_config_says_the_same_by_hand_saved_and_written(name: str, variant: str) -> None:
    made = case(name, variant)
    assert made.family.spec(raw(name, variant)) == made.ours.spec
    assert made.family.spec(made.family.config(made.ours.spec)) == made.ours.spec


@each_case
def test_the_table_names_each_tensor_once_and_loses_none(name: str, variant: str) -> None:
    made = case(name, variant)
    assert sorted(row.theirs for row in expand(made.family.weights, made.ours)) == sorted(made.tensors)
    written = export(made.ours, made.family)
    for theirs, tensor in made.tensors.items():
        assert torch.equal(written[theirs], tensor), theirs
    assert made.notes == []


def test_no_row_of_a_table_is_dead() -> None:
    used = set()
    for name in names():
        for variant in ("tiny", *find(name).variants):
            have = {p for p, _ in case(name, variant).ours.named_parameters()}
            layers = case(name, variant).ours.spec.decoder.layers
            used |= {
                row
                for row in find(name).weights
                if any(all(t.replace("{i}", str(i)) in have for t in row.targets) for i in range(layers))
            }
    assert {row for name in names() for row in find(name).weights} == used


@each_case
def test_every_parameter_gets_a_gradient(name: str, variant: str) -> None:
    model = case(name, variant).ours
    model.zero_grad()
    logits = torch.cat(model([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8]]))
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    rotary = model.spec.decoder.blocks[0].mixer.position is not None and name != "bloom"
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all()
        # A bias on every key adds the same to all of a query's scores, unless keys are turned by their positions.
        if rotary or not parameter.endswith("mixer.k.bias"):
            assert value.grad.abs().max() > 1e-5, parameter
    model.zero_grad()
