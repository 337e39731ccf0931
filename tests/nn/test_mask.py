"""Rules on positions."""

import pytest
import torch

from qkv import spec
from qkv.nn.mask import Full, Mask
from qkv.nn.parts import build

MASKS = [spec.Full(), spec.Causal(), *(spec.Window(n) for n in (1, 2, 5, 8, 100))]


def table(mask: Mask, queries: range, keys: range) -> torch.Tensor:
    return mask.allows(torch.tensor(queries)[None, :, None], torch.tensor(keys)[None, None, :])[0]


@pytest.mark.parametrize("rule", MASKS, ids=repr)
def test_plainly_is_what_the_rule_comes_to(rule: spec.Mask) -> None:
    mask, said = build(rule), set()
    for start in range(12):
        for length in range(1, 12):
            allowed = table(mask, range(start, start + length), range(start + length))
            plainly = mask.plainly(start, length)
            said.add(plainly)
            if plainly == "all":
                assert allowed.all()
            elif plainly == "lower triangle":
                assert torch.equal(allowed, torch.ones_like(allowed).tril())
            else:
                assert not allowed.all()
                assert start > 0 or not torch.equal(allowed, torch.ones_like(allowed).tril())
    assert said >= {"all"}


@pytest.mark.parametrize("rule", MASKS, ids=repr)
def test_what_is_not_kept_is_never_seen_again(rule: spec.Mask) -> None:
    mask = build(rule)
    seen = table(mask, range(200, 201), range(201))[0]
    if mask.keeps() is None:
        assert seen.all()
    else:
        assert seen.sum() == mask.keeps() == seen[-mask.keeps() :].sum()


def test_only_the_full_mask_sees_ahead() -> None:
    for rule in MASKS:
        ahead = table(build(rule), range(5), range(10)).triu(1).any()
        assert ahead == isinstance(build(rule), Full)
