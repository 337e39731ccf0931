"""The readable reference is the equation, and every faster path is the reference."""

import math
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.nn.attend import Keys, Path, attend, products, quickest, reference, sdpa, weights
from qkv.nn.batch import Batch
from qkv.nn.cache import MOST_RUNS, Contiguous, Stream, side_by_side
from qkv.nn.parts import build
from qkv.nn.position import Relative

MASKS = [spec.Full(), spec.Causal(), spec.Window(1), spec.Window(3), spec.Window(100)]
POSITIONS = [None, spec.Alibi(), spec.RelativeBias(8, 6), spec.RelativeBias(8, 6, both_ways=True)]
HEADS = [(4, 4), (4, 2), (4, 1)]
LENGTHS = [  # new tokens of each sequence, and those that a cache holds already
    ([1], [0]),
    ([7], [0]),
    ([5, 5], [0, 0]),
    ([1, 4, 9], [0, 0, 0]),
    ([1], [6]),
    ([1, 1], [3, 3]),
    ([1, 1, 1], [2, 8, 5]),
    ([3, 3], [4, 4]),
    ([2, 1, 4], [3, 6, 1]),
]
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
D = 8


@dataclass
class Case:
    """q [T, H, D] of the new tokens; k and v [sequence][key, G, D] of all."""

    q: Tensor
    k: list[Tensor]
    v: list[Tensor]
    batch: Batch

    @property
    def leaves(self) -> list[Tensor]:
        return [self.q, *self.k, *self.v]


def case(heads: int, kv_heads: int, lengths: list[int], starts: list[int], dtype: torch.dtype = torch.float64) -> Case:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    batch = Batch(lengths, starts, torch.device("cpu"))
    k, v = ([random(end, kv_heads, D) for end in batch.ends] for _ in "kv")
    return Case(random(sum(lengths), heads, D), k, v, batch)


def attended(case: Case, mask: spec.Mask, position: Relative, path: Path | None, **how: Any) -> Tensor:
    """[T, H, D], by way of a cache."""
    storage, batch = Contiguous(), Batch(case.batch.lengths, case.batch.starts, case.batch.device)
    old, new = (
        [torch.cat([x[rows] for x, rows in zip(xs, cut, strict=True)]) for xs in (case.k, case.v)]
        for cut in ([slice(0, s) for s in batch.starts], [slice(s, None) for s in batch.starts])
    )
    if any(batch.starts):
        storage.extend(*old, Batch(batch.starts, [0] * len(batch.starts), batch.device))
    keys = storage.extend(*new, batch)
    return attend(case.q, keys, batch, mask=build(mask), position=position, path=path, **how)


def gradients(out: Tensor, case: Case) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), case.leaves))


def scheme(position: spec.Relative | None, heads: int) -> Relative:
    return build(position, heads, D) if position else Relative()


def allowed(mask: spec.Mask, i: int, j: int) -> bool:
    if isinstance(mask, spec.Full):
        return True
    return j <= i and (not isinstance(mask, spec.Window) or i - j < mask.size)


def bias(position: spec.Relative | None, scheme: Any, h: int, heads: int, i: int, j: int) -> float:
    if isinstance(position, spec.Alibi):
        return -(2.0 ** (-8 * (h + 1) / heads)) * (i - j)
    if isinstance(position, spec.RelativeBias):
        return scheme.weight[scheme.buckets(torch.tensor(j - i)), h].item()
    return 0.0


def by_hand(
    case: Case, mask: spec.Mask, position: spec.Relative | None, module: Any, scale: float, softcap: float | None
) -> Tensor:
    """Number by number, in Python's floats."""
    out, t = torch.zeros_like(case.q), 0
    heads = case.q.shape[1]
    for row, (start, end) in enumerate(zip(case.batch.starts, case.batch.ends, strict=True)):
        k, v = case.k[row].tolist(), case.v[row].tolist()
        for i in range(start, end):
            for h, q in enumerate(case.q[t].tolist()):
                g = h // (heads // len(k[0]))
                p = {}
                for j in range(end):
                    if allowed(mask, i, j):
                        score = scale * sum(a * b for a, b in zip(q, k[j][g], strict=True))
                        score = score if softcap is None else softcap * math.tanh(score / softcap)
                        p[j] = math.exp(score + bias(position, module, h, heads, i, j))
                whole = sum(p.values())
                out.data[t, h] = torch.tensor([sum(p[j] / whole * v[j][g][d] for j in p) for d in range(D)])
            t += 1
    return out


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("position", POSITIONS, ids=repr)
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_the_reference_is_the_equation(mask: spec.Mask, position: spec.Relative | None, softcap: float | None) -> None:
    for (heads, kv_heads), (lengths, starts) in product(HEADS, [LENGTHS[3], LENGTHS[8]]):
        data, module = case(heads, kv_heads, lengths, starts), scheme(position, heads)
        out = attended(data, mask, module, reference, scale=0.3, softcap=softcap)
        hand = by_hand(data, mask, position, module, 0.3, softcap)
        torch.testing.assert_close(out, hand, atol=1e-6, rtol=0)  # biases are made in float32


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("position", POSITIONS, ids=repr)
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_the_kernel_is_the_reference(mask: spec.Mask, position: spec.Relative | None, dtype: torch.dtype) -> None:
    for scale, ((heads, kv_heads), (lengths, starts)) in zip(cycle([0.1, 0.35, 1.0]), product(HEADS, LENGTHS)):
        data, module = case(heads, kv_heads, lengths, starts, dtype), scheme(position, heads)
        fast = attended(data, mask, module, None, scale=scale)
        slow = attended(data, mask, module, reference, scale=scale)
        assert fast.dtype == slow.dtype == dtype
        close = {"atol": CLOSE[dtype], "rtol": CLOSE[dtype]}
        torch.testing.assert_close(fast, slow, **close)
        if dtype == torch.float32:
            torch.testing.assert_close(gradients(fast, data), gradients(slow, data), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tile", [1, 40, 2**21])
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_products_are_the_reference(
    mask: spec.Mask, dtype: torch.dtype, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their gradients, however many heads are taken at a time."""
    monkeypatch.setattr("qkv.nn.attend.TILE", tile)
    for scale, ((heads, kv_heads), (lengths, starts)) in zip(cycle([0.1, 0.35, 1.0]), product(HEADS, LENGTHS)):
        data = case(heads, kv_heads, lengths, starts, dtype)
        fast, slow = (attended(data, mask, Relative(), path, scale=scale) for path in (products, reference))
        assert fast.dtype == slow.dtype == dtype
        close = {"atol": CLOSE[dtype], "rtol": CLOSE[dtype]}
        torch.testing.assert_close(fast, slow, **close)
        wide = {"atol": 6 * CLOSE[dtype], "rtol": 6 * CLOSE[dtype]}
        torch.testing.assert_close(gradients(fast, data), gradients(slow, data), **wide)


def test_products_round_no_worse_than_the_kernel() -> None:
    """In bfloat16, at a length as in training: their gradients' distance from float32's is not twice the kernel's."""
    q, k, v, given = (torch.randn(1, 2, 160, 32).bfloat16().requires_grad_() for _ in range(4))
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    how = {"causal": True, "scale": 32**-0.5}
    wanted = torch.autograd.grad(reference(*exact, **how), exact, given.float())
    found = [torch.autograd.grad(path(q, k, v, **how), [q, k, v], given) for path in (products, sdpa)]
    for ours, kernels, true in zip(*found, wanted, strict=True):
        assert (ours.float() - true).norm() < 2 * (kernels.float() - true).norm()
        assert (ours.float() - true).norm() < 0.01 * true.norm()


def test_products_are_for_learning_in_bfloat16() -> None:
    q = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    assert quickest(q, q, None, 0.0) is products
    assert quickest(q.float(), q.float(), None, 0.0) is sdpa
    assert quickest(q, q, None, 0.1) is sdpa
    assert quickest(q, q, torch.zeros(1), 0.0) is sdpa
    with torch.no_grad():
        assert quickest(q, q, None, 0.0) is sdpa


@pytest.mark.parametrize("path", [sdpa, reference])
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_a_bias_of_scores_gets_its_gradient(mask: spec.Mask, path: Path) -> None:
    """From unequal lengths too, where some cells of the grid hold no token."""
    data, module = case(4, 2, [1, 4, 9], [0, 0, 0], torch.float32), scheme(spec.RelativeBias(8, 6), 4)
    out = attended(data, mask, module, path, scale=0.3)
    (found,) = torch.autograd.grad(out.square().sum(), [module.weight], retain_graph=True)
    assert torch.isfinite(found).all()
    assert found.any() or mask == spec.Window(1), "one key a query: its bias can't matter"
    assert all(torch.isfinite(g).all() for g in gradients(out, data))


@pytest.mark.parametrize("path", [sdpa, reference, products])
@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_no_nan_from_unequal_lengths(mask: spec.Mask, path: Path) -> None:
    for lengths, starts in LENGTHS:
        data = case(4, 2, lengths, starts, torch.float32)
        out = attended(data, mask, Relative(), path, scale=0.3)
        assert all(torch.isfinite(x).all() for x in (out, *gradients(out, data)))


def test_a_query_that_sees_nothing_has_weights_of_zero_and_no_nan_in_its_gradient() -> None:
    q, k = (torch.randn(1, 1, 2, D, requires_grad=True) for _ in "qk")
    table = torch.tensor([[False, False], [True, False]])
    p = weights(q, k, allowed=table, bias=None, causal=False, scale=1.0, softcap=None)
    assert p.tolist() == [[[[0.0, 0.0], [1.0, 0.0]]]]
    p.sum().backward()
    assert torch.isfinite(q.grad).all()
    assert torch.isfinite(k.grad).all()


def test_a_soft_cap_takes_the_reference_and_bounds_the_scores() -> None:
    data = case(4, 2, [6], [0], torch.float32)
    how = {"scale": 50.0, "softcap": 2.0}
    torch.testing.assert_close(
        attended(data, spec.Causal(), Relative(), None, **how),
        attended(data, spec.Causal(), Relative(), reference, **how),
    )
    q, k = data.q.transpose(0, 1)[None], data.k[0].transpose(0, 1)[None]
    p = weights(q, k, allowed=None, bias=None, causal=False, **how)
    assert p.max() <= math.exp(2) / (math.exp(2) + 5 * math.exp(-2))


@pytest.mark.parametrize("path", [sdpa, reference])
def test_dropout_drops_weights(path: Path) -> None:
    q = k = torch.zeros(1, 1, 200, D)
    v = torch.ones(1, 1, 200, D)
    assert path(q, k, v, scale=1.0, dropout=0.0).std() < 1e-6
    kept = path(q, k, v, scale=1.0, dropout=0.5)
    assert kept.std() > 0.05
    assert kept.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("mask", [spec.Full(), spec.Causal(), spec.Window(2)], ids=repr)
def test_some_sequences_at_a_time_or_all_in_a_grid(mask: spec.Mask) -> None:
    """Runs of equal lengths, and (for too many of them) one padded grid, are the same attention."""
    batch = Batch([4, 4, 1, 3, 3, 3, 2], [0] * 7, torch.device("cpu"))
    q, k, v = torch.randn(20, 4, 8), torch.randn(20, 2, 8), torch.randn(20, 2, 8)
    with torch.no_grad():
        runs, grid = Stream().extend(k, v, batch), side_by_side(k, v, batch)
    assert isinstance(runs, list)
    assert isinstance(Stream().extend(k, v, batch), Keys)  # sooner to learn from
    far = Batch([100, *[1] * 9], [0] * 10, torch.device("cpu"))  # but not with ten times the scores
    assert isinstance(Stream().extend(torch.randn(109, 2, 8), torch.randn(109, 2, 8), far), list)
    assert [len(run.batch.lengths) for run in runs] == [2, 1, 3, 1]
    how = {"mask": build(mask), "position": build(spec.RelativeBias(8, 6), 4, 8), "scale": 0.3}
    torch.testing.assert_close(attend(q, runs, batch, **how), attend(q, grid, batch, **how))
    many = Batch([1 + i % 2 for i in range(MOST_RUNS + 1)], [0] * (MOST_RUNS + 1), torch.device("cpu"))
    total = sum(many.lengths)
    assert isinstance(Stream().extend(torch.randn(total, 2, 8), torch.randn(total, 2, 8), many), Keys)
