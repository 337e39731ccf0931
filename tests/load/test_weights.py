"""The weight table, read both ways: what it must refuse, and that every refusal comes before any weight is read."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qkv.errors import WeightError
from qkv.families.llama import FAMILY
from qkv.load.weights import expand, export, fill
from qkv.nn.stack import Transformer
from tests.families.reference import Tensors

Q = "model.layers.0.self_attn.q_proj.weight"


def model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    return Transformer(FAMILY.spec(FAMILY.tiny | changes))


def empty(**changes: Any) -> Transformer:
    with torch.device("meta"):
        return model(**changes)


class NeverRead(Tensors):
    """Shapes may be looked at, values not."""

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read")


def test_export_and_fill_are_each_others_inverse() -> None:
    source, target = model(), empty()
    assert fill(target, FAMILY.table(FAMILY.architectures[0]), Tensors(export(source, FAMILY)), FAMILY) == []
    for (name, a), (_, b) in zip(source.named_parameters(), target.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert all(p.requires_grad for p in target.parameters())


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_what_does_not_fit_is_said_before_anything_is_read(change: str) -> None:
    tensors = export(model(), FAMILY)
    if change == "missing":
        del tensors[Q]
    elif change == "extra":
        tensors["adapter"] = torch.ones(2)
    else:
        tensors[Q] = torch.ones(3, 3)
    target = empty()
    with pytest.raises(WeightError, match=change if change != "extra" else "unexpected"):
        fill(target, FAMILY.table(FAMILY.architectures[0]), NeverRead(tensors), FAMILY)
    assert all(p.is_meta for p in target.parameters())


def test_old_checkpoints_masks_and_frequencies_are_ignored() -> None:
    tensors = export(model(), FAMILY) | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    fill(empty(), FAMILY.table(FAMILY.architectures[0]), Tensors(tensors), FAMILY)


def test_a_tensor_without_a_name_is_one_too_many() -> None:
    tensors = export(model(), FAMILY) | {"": torch.ones(2)}
    with pytest.raises(WeightError, match=r"unexpected \(1\)"):
        fill(empty(), FAMILY.table(FAMILY.architectures[0]), NeverRead(tensors), replace(FAMILY, ignored=()))


def test_a_tied_head_is_stored_once_and_checked_where_it_is_stored_twice() -> None:
    tied = model(tie_word_embeddings=True)
    tensors = export(tied, FAMILY)
    assert "lm_head.weight" not in tensors
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    (note,) = fill(empty(tie_word_embeddings=True), FAMILY.table(FAMILY.architectures[0]), Tensors(same), FAMILY)
    assert "same values" in note
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(WeightError, match="holds other values"):
        fill(empty(tie_word_embeddings=True), FAMILY.table(FAMILY.architectures[0]), Tensors(other), FAMILY)


def test_a_table_must_cover_each_parameter_once() -> None:
    without = [row for row in FAMILY.table(FAMILY.architectures[0]) if "up_proj" not in row.theirs]
    with pytest.raises(WeightError, match=r"mlp\.up\.weight"):
        expand(without, model())
    twice = [
        *FAMILY.table(FAMILY.architectures[0]),
        replace(FAMILY.table(FAMILY.architectures[0])[0], theirs="again.weight"),
    ]
    with pytest.raises(WeightError, match=r"embed\.tokens\.weight"):
        expand(twice, model())


def test_many_differences_are_counted_and_the_first_named() -> None:
    tensors = {f"other.{i}": torch.ones(1) for i in range(20)}
    with pytest.raises(WeightError) as error:
        fill(empty(), FAMILY.table(FAMILY.architectures[0]), Tensors(tensors), FAMILY)
    assert "unexpected (20): other.0" in str(error.value)
    assert "…" in str(error.value)
    assert len(str(error.value).splitlines()) < 16
