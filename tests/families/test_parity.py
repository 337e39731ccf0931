"""Each family and variant against transformers: the same logits, from its files and back into them."""

from typing import Any

import torch
from torch import Tensor

from qkv.families.family import find, names
from qkv.load.weights import export
from qkv.spec import Rotary
from tests.families.reference import CASES, case, close, each_case, our_outputs, raw, reloaded, their_outputs


@each_case
def test_logits_are_those_of_transformers(name: str, variant: str) -> None:
    made = case(name, variant)
    theirs = their_outputs(made.theirs, made.ours.spec)
    assert 0.1 < torch.cat(theirs).std() < 20
    close(our_outputs(made.ours), theirs, within=1e-4)


@each_case
def test_transformers_loads_what_is_written(name: str, variant: str) -> None:
    made = case(name, variant)
    again = their_outputs(reloaded(made.ours, made.family), made.ours.spec)
    close(again, their_outputs(made.theirs, made.ours.spec), within=1e-5)


@each_case
def test_a_config_says_the_same_by_hand_saved_and_written(name: str, variant: str) -> None:
    made = case(name, variant)
    assert made.family.spec(raw(name, variant)) == made.ours.spec
    assert made.family.spec(made.family.config(made.ours.spec)) == made.ours.spec


@each_case
def test_the_table_names_each_tensor_once_and_loses_none(name: str, variant: str) -> None:
    made = case(name, variant)
    written = export(made.ours, made.family)
    assert sorted(written) == sorted(made.tensors)
    for theirs, tensor in made.tensors.items():
        assert torch.equal(written[theirs], tensor), theirs
    assert made.notes == []


def test_no_row_of_a_table_is_dead() -> None:
    """Over all families: those built like LLaMA share one table of names, of which each has its part."""
    used = set()
    for name, variant in CASES:
        made = case(name, variant)
        have = {parameter for parameter, _ in made.ours.named_parameters()}
        used |= {
            row
            for row in made.family.table(made.family.architecture(made.config))
            if any(all(t.replace("{i}", str(i)) in have for t in row.targets) for i in range(8))
        }
    assert {row for name in names() for kind in find(name).architectures for row in find(name).table(kind)} == used


def parts(answer: Any) -> list[Tensor]:
    """All tensors in an answer, however nested."""
    return [answer] if isinstance(answer, Tensor) else [x for one in answer for x in parts(one)]


@each_case
def test_every_parameter_gets_a_gradient(name: str, variant: str) -> None:
    model = case(name, variant).ours
    model.zero_grad()
    both = len(model.spec.stacks) == 2
    answers = model([[3, 9, 4, 9, 5, 9, 2, 6, 5, 3], [2, 7, 9, 8]], [[4, 3, 5, 6], [4, 7, 9, 3, 5]] if both else None)
    numbers = torch.cat([x.flatten() for x in parts(answers)])
    (numbers * torch.randn(numbers.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    rotary = isinstance(getattr(model.spec.last.blocks[0].mixer, "position", None), Rotary)
    for parameter, value in model.named_parameters():
        if parameter.startswith("head.pooler."):
            continue  # kept beside the bare states, which don't need it
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all()
        # A bias on every key adds the same to all of a query's scores, unless keys are turned by their positions.
        if rotary or not parameter.endswith(("mixer.k.bias", "cross.k.bias")):
            assert value.grad.abs().max() > 1e-5, parameter
    model.zero_grad()
