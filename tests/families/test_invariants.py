"""One answer: a sequence's logits are the same with a cache and without, in one piece and in many, alone and with
others, in any order. For every family and variant."""

from itertools import pairwise

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.nn.stack import Transformer
from qkv.spec import DynamicNTKScaling
from tests.families.reference import CASES, case, each_family

quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def longest(model: Transformer) -> int:
    """Where one answer ends: dynamic scaling changes what was cached once it begins."""
    scaling = getattr(model.spec.decoder.blocks[0].mixer.position, "scaling", None)
    return scaling.length if isinstance(scaling, DynamicNTKScaling) else 30


def same(a: Tensor, b: Tensor) -> None:
    """Within 1e-5, and the same token first wherever it leads by more than that."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    best = a.topk(2, -1).values
    clear = best[:, 0] - best[:, 1] > 2e-5
    assert torch.equal(a.argmax(-1)[clear], b.argmax(-1)[clear])


def cuts(draw: st.DrawFn, length: int, steps: int) -> list[int]:
    """The lengths of `steps` pieces, none empty."""
    at = (
        draw(st.lists(st.integers(1, length - 1), min_size=steps - 1, max_size=steps - 1, unique=True))
        if steps > 1
        else []
    )
    edges = [0, *sorted(at), length]
    return [b - a for a, b in pairwise(edges)]


@given(data=st.data(), chosen=st.sampled_from(CASES))
@settings(quick, max_examples=100)
def test_one_answer(data: st.DataObject, chosen: tuple[str, str]) -> None:
    model = case(*chosen).ours
    lengths = data.draw(st.lists(st.integers(1, longest(model)), min_size=1, max_size=4), label="lengths")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    drawn = torch.Generator().manual_seed(seed)
    sequences = [torch.randint(0, model.spec.vocab, (n,), generator=drawn) for n in lengths]
    with torch.no_grad():
        alone = [model(x[None])[0] for x in sequences]
        order = data.draw(st.permutations(range(len(sequences))), label="order")
        for i, batched in zip(order, model([sequences[i] for i in order]), strict=True):
            same(batched, alone[i])
        steps = data.draw(st.integers(1, min(lengths)), label="steps")
        pieces = [cuts(data.draw, n, steps) for n in lengths]
        room = data.draw(st.sampled_from([None, max(lengths), 64]), label="room")
        for cached, one in zip(stepwise(model, sequences, pieces, room), alone, strict=True):
            same(cached, one)


def stepwise(model: Transformer, sequences: list[Tensor], pieces: list[list[int]], room: int | None) -> list[Tensor]:
    """Each sequence's logits, fed to one cache piece by piece."""
    cache = model.new_cache(room)
    parts = [x.split(lengths) for x, lengths in zip(sequences, pieces, strict=True)]
    answers = [model([part[step] for part in parts], cache=cache) for step in range(len(pieces[0]))]
    assert cache.lengths == [len(x) for x in sequences]
    return [torch.cat([answer[i] for answer in answers]) for i in range(len(sequences))]


@each_family
def test_one_token_at_a_time(name: str) -> None:
    model = case(name, "tiny").ours
    ids = torch.arange(30) * 5 % model.spec.vocab
    with torch.no_grad():
        same(stepwise(model, [ids], [[1] * len(ids)], None)[0], model(ids[None])[0])
