"""One answer: what a sequence gives is the same with a cache and without, in one piece and in many, alone and with
others, in any order. For every family, variant and head."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv.families.family import find
from qkv.nn.stack import Transformer
from qkv.spec import DynamicNTKScaling
from tests.families.reference import CASES, FIRST, case

quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
WITH_DECODER = [name for name in dict(CASES) if find(name).spec(find(name).tiny).decoder]


def longest(model: Transformer) -> int:
    """Where one answer ends: dynamic scaling changes what was cached once it begins."""
    scaling = getattr(model.spec.last.blocks[0].mixer.position, "scaling", None)
    return scaling.length if isinstance(scaling, DynamicNTKScaling) else 30


def same(a: Tensor, b: Tensor) -> None:
    """Within 1e-5, and the same first place wherever it leads by more than that."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    if a.ndim and a.shape[-1] > 1:
        best = a.topk(2, -1).values
        clear = best[..., 0] - best[..., 1] > 2e-5
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


def drawn(data: st.DataObject, count: int, most: int, name: str) -> list[Tensor]:
    """`count` sequences of ids, each of 1 to `most`."""
    lengths = data.draw(st.lists(st.integers(1, most), min_size=count, max_size=count), label=name)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16), label="seed"))
    return [torch.randint(FIRST, 97, (n,), generator=random) for n in lengths]


def answer(model: Transformer, sources: list[Tensor], targets: list[Tensor] | None) -> list[Tensor]:
    """One tensor a sequence: of several heads all their numbers."""
    out: Any = model(sources, targets)
    if isinstance(out, tuple):
        return [torch.cat([part.flatten() for part in parts]) for parts in zip(*out, strict=True)]
    return list(out)


@given(data=st.data(), chosen=st.sampled_from(CASES))
@settings(quick, max_examples=150)
def test_alone_and_with_others(data: st.DataObject, chosen: tuple[str, str]) -> None:
    model = case(*chosen).ours
    count = data.draw(st.integers(1, 4), label="count")
    sources = drawn(data, count, longest(model), "lengths")
    targets = drawn(data, count, longest(model), "targets") if len(model.spec.stacks) == 2 else None
    with torch.no_grad():
        alone = [answer(model, [x], targets and [targets[i]])[0] for i, x in enumerate(sources)]
        order = data.draw(st.permutations(range(count)), label="order")
        batched = answer(model, [sources[i] for i in order], targets and [targets[i] for i in order])
        for i, one in zip(order, batched, strict=True):
            same(one, alone[i])


@given(data=st.data(), name=st.sampled_from(WITH_DECODER), pick=st.integers(0, 2**16))
@settings(quick, max_examples=100)
def test_in_pieces_with_a_cache(data: st.DataObject, name: str, pick: int) -> None:
    variants = [v for n, v in CASES if n == name and case(n, v).ours.decoder is not None]
    model = case(name, variants[pick % len(variants)]).ours
    count = data.draw(st.integers(1, 4), label="count")
    sequences = drawn(data, count, longest(model), "lengths")
    sources = drawn(data, count, 30, "sources") if model.encoder is not None else None
    steps = data.draw(st.integers(1, min(map(len, sequences))), label="steps")
    pieces = [cuts(data.draw, len(x), steps) for x in sequences]
    room = data.draw(st.sampled_from([None, max(map(len, sequences)), 64]), label="room")
    with torch.no_grad():
        for i, cached in enumerate(stepwise(model, sequences, pieces, room, sources)):
            same(cached, at_once(model, sequences[i], sources and sources[i]))


def at_once(model: Transformer, ids: Tensor, source: Tensor | None) -> Tensor:
    """The last stack's states [length, dim]."""
    stream, batch = model.batch(ids[None])
    return model.states(stream, batch, memory=None if source is None else model.encode(source[None]))


def stepwise(
    model: Transformer,
    sequences: list[Tensor],
    pieces: list[list[int]],
    room: int | None,
    sources: list[Tensor] | None = None,
) -> list[Tensor]:
    """Each sequence's states, fed to one cache piece by piece."""
    cache = model.new_cache(room, memory=None if sources is None else model.encode(sources))
    parts = [x.split(lengths) for x, lengths in zip(sequences, pieces, strict=True)]
    answers = []
    for step in range(len(pieces[0])):
        stream, batch = model.batch([part[step] for part in parts], cache=cache)
        answers.append(batch.split(model.states(stream, batch, cache)))
    assert cache.lengths == [len(x) for x in sequences]
    return [torch.cat([answer[i] for answer in answers]) for i in range(len(sequences))]


@pytest.mark.parametrize("name", WITH_DECODER)
def test_one_token_at_a_time(name: str) -> None:
    model = case(name, "tiny").ours
    ids = FIRST + torch.arange(30) * 5 % (model.spec.vocab - FIRST)
    source = ids[:7] if model.encoder is not None else None
    with torch.no_grad():
        one = stepwise(model, [ids], [[1] * len(ids)], None, None if source is None else [source])[0]
        same(one, at_once(model, ids, source))
