"""The rows of prompts in a plan: their own products and attention, where the library has some (bfloat16, AMX), near the
equation and the same to the bit however a prompt is cut, batched or threaded; elsewhere those of all other rows."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from qkv.kernels.native import LEVELS, TYPES
from qkv.kernels.plan import Plan, Turn
from tests.kernels.test_plan import HOW, Attending, filled, in_pages, library, norm_of, weight, with_threads

BFLOAT16 = 2**-8  # how much a number may change when it is rounded
ROWS = (1, 5, 15, 16, 17, 31, 32, 33, 70)  # below and above 16 and 32, of which products are made of


@pytest.fixture(autouse=True, scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level; where the processor lacks one, the best that it has is tested again."""
    yield library().use(request.param)
    library().use(None)


def product(kind: str, N: int, x: Tensor, lengths: Sequence[int], prompts: Sequence[int], **how: Any) -> Tensor:
    matrix, _ = weight(kind, N, x.shape[1])
    plan = Plan(library(), len(x))
    out = plan.buffer(N)
    plan.linear(filled(plan, x), [(matrix, None, out)], **how)
    plan.run([0] * len(x), lengths, [0] * len(lengths), [], None, prompts)
    return out.at


def expected(x: Tensor, w: Tensor) -> Tensor:
    return (x.bfloat16().double() @ w.bfloat16().double().T).float()


@pytest.mark.parametrize("kind", TYPES)
def test_products(kind: str) -> None:
    for rows in ROWS:
        for N, K in ((1, 256), (37, 512), (70, 256), (150, 1536)):
            x, w = torch.randn(rows, K), weight(kind, N, K)[1]
            ours = product(kind, N, x, [rows], [rows])
            if library().bulk:
                assert ((ours - expected(x, w)).abs() <= 2e-6 * (x.abs() @ w.abs().T)).all()
            else:
                assert torch.equal(ours, product(kind, N, x, [rows], [0]))


def test_large_and_small_numbers() -> None:
    """Every row alone decides how it is rounded."""
    x = torch.randn(40, 256) * torch.logspace(-20, 20, 40)[:, None]
    w = weight("Q4_1", 70, 256)[1]
    ours, size = product("Q4_1", 70, x, [40], [40]), x.abs() @ w.abs().T
    assert ((ours - x @ w.T).abs() <= 2.1 * BFLOAT16 * size).all()


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q6_K"])
def test_a_row_is_the_same_alone_among_others_and_with_any_threads(kind: str) -> None:
    x = torch.randn(70, 256)
    read, written = product(kind, 150, x, [70], [70]), product(kind, 150, x, [70], [0])
    assert torch.equal(read, written) != library().bulk
    for lengths, prompts in (([70], [33]), ([30, 40], [10, 40]), ([1, 60, 9], [0, 59, 9]), ([20, 50], [0, 1])):
        starts = [0, *accumulate(lengths)]
        mine = torch.zeros(70, 1, dtype=torch.bool)
        for start, count in zip(starts, prompts, strict=False):
            mine[start : start + count] = True
        for threads in (1, 3):
            found = with_threads(threads, lambda a=lengths, b=prompts: product(kind, 150, x, a, b))
            assert torch.equal(found, torch.where(mine, read, written)), (lengths, prompts, threads)


@pytest.mark.parametrize("gated", [False, True])
def test_what_comes_before_and_after_a_product(gated: bool) -> None:
    """A norm, biases, an activation, a gate, a sum; of a stream whose prompts are not all of it."""
    (norm, exact), x, plus = norm_of("rms", 256, False), torch.randn(50, 256), torch.randn(50, 37)
    (a, wa), (b, wb) = (weight("Q8_0", 37, 256, seed) for seed in (1, 2))
    bias, plan = torch.randn(37), Plan(library(), 50)
    outs = [plan.buffer(37), plan.buffer(37)]
    given_ = [(a, bias, outs[0]), (b, None, outs[1])][: 1 + gated]
    residual = None if gated else filled(plan, plus)
    plan.linear(filled(plan, x), given_, norm=norm, activation="silu", gated=gated, scale=0.01, residual=residual)
    plan.run([0] * 50, [20, 30], [0, 0], [], None, [20, 17])
    y = F.silu(exact(x) @ wa.T * 0.01 + bias)
    y = y * (exact(x) @ wb.T * 0.01) if gated else y + plus
    assert (outs[0].at - y).norm() <= 0.02 * y.norm()  # 8 bits, where the library has no other product


def test_mixed_with_plain_matrices_a_product_is_the_usual_one() -> None:
    x, plan = torch.randn(40, 256), Plan(library(), 40)
    (a, wa), (b, _) = weight("F32", 37, 256), weight("Q8_0", 37, 256)
    outs = [plan.buffer(37), plan.buffer(37)]
    plan.linear(filled(plan, x), [(a, None, outs[0]), (b, None, outs[1])])
    plan.run([0] * 40, [40], [0], [], None, [40])
    torch.testing.assert_close(outs[0].at, x @ wa.T, rtol=1e-5, atol=1e-4)
    assert torch.equal(outs[1].at, product("Q8_0", 37, x, [40], [0]))


@pytest.mark.parametrize("picked", [[49], [0, 3, 30], []])
def test_rows_that_are_picked_have_the_usual_product(picked: list[int]) -> None:
    x = torch.randn(50, 256)
    plan, (matrix, _) = Plan(library(), 50), weight("Q4_1", 70, 256)
    out = plan.buffer(70)
    plan.linear(filled(plan, x), [(matrix, None, out)], picked=True)
    plan.run([0] * 50, [50], [0], picked, None, [50])
    assert torch.equal(out.at[: len(picked)], product("Q4_1", 70, x, [50], [0])[picked])


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [32, 64, 80, 96, 256])
@pytest.mark.parametrize("how", HOW)
def test_attention(how: str, D: int) -> None:
    options = {**HOW[how], **({"dims": D} if HOW[how].get("dims") == -1 else {})}
    for H, G, starts, lengths in (
        (4, 4, [5, 0, 40], [1, 70, 12]),
        (6, 2, [0], [90]),
        (3, 1, [250, 600], [20, 33]),
        (8, 1, [511, 0], [1, 300]),
    ):
        made = Attending(H, G, D, starts, dtype=torch.bfloat16, **options)
        q, k, v = made.inputs(sum(lengths))
        kept = made.keys.clone(), made.values.clone()
        out = made.native(q, k, v, lengths, *kept, prompts=lengths)
        usual = made.keys.clone(), made.values.clone()
        plain = made.native(q, k, v, lengths, *usual)
        assert all(torch.equal(a, b) for a, b in zip(kept, usual, strict=True))
        exact = made.plainly(q, lengths, *kept)
        assert (out - exact).norm() <= 0.01 * exact.norm()
        assert (out - exact).abs().max() <= 0.05 * exact.abs().max()
        assert torch.equal(out, plain) == (not library().bulk or D % 32 > 0)


def test_a_cache_of_32_bits_is_read_as_ever() -> None:
    made = Attending(4, 2, 64, [5], dtype=torch.float32)
    q, k, v = made.inputs(40)
    out = made.native(q, k, v, [40], made.keys.clone(), made.values.clone(), prompts=[40])
    assert torch.equal(out, made.native(q, k, v, [40], made.keys.clone(), made.values.clone()))


@pytest.mark.parametrize("options", [{}, {"alibi": True, "softcap": 5.0}, {"norm": "rms", "dims": 64}], ids=str)
def test_a_query_sees_the_same_alone_among_others_in_pieces_and_with_any_threads(options: dict[str, Any]) -> None:
    starts, lengths = [3, 590, 250], [5, 80, 170]
    made = Attending(4, 2, 64, starts, dtype=torch.bfloat16, **options)
    q, k, v = made.inputs(sum(lengths))
    kept = made.keys.clone(), made.values.clone()
    together = made.native(q, k, v, lengths, *kept, prompts=lengths)
    for threads in (2, 3):
        mine = made.keys.clone(), made.values.clone()
        again = with_threads(threads, lambda at=mine: made.native(q, k, v, lengths, *at, prompts=lengths))
        assert torch.equal(again, together)
    for b, end in enumerate(accumulate(lengths)):
        for size in (7, 16, 64, 100):
            own = made.keys[b : b + 1].clone(), made.values[b : b + 1].clone()
            for first in range(end - lengths[b], end, size):
                part = slice(first, min(first + size, end))
                made.starts = [starts[b] + first - end + lengths[b]]
                count = [part.stop - first]
                alone = made.native(q[part], k[part], v[part], count, *own, prompts=count)
                assert torch.equal(alone, together[part]), (b, size, first)
            made.starts = starts
            assert all(torch.equal(one[0], all_[b]) for one, all_ in zip(own, kept, strict=True))


@settings(max_examples=25)
@given(
    sequences=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 90), st.integers(0, 90)), min_size=1, max_size=5
    ),
    size=st.sampled_from([16, 32, 64]), G=st.integers(1, 3), group=st.integers(1, 4), D=st.sampled_from([32, 64, 96]),
    threads=st.integers(1, 3), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_batch_of_prompts_and_answers_in_pages(
    sequences: list[tuple[int, int, int]], size: int, G: int, group: int, D: int, threads: int, seed: int
) -> None:
    """Whatever is beside it, a row of a prompt gets what all prompts get, and another what it gets without any; and
    pages that are not its own (here NaN) are nothing to it."""
    torch.manual_seed(seed)
    lengths = [length for _, length, _ in sequences]
    prompts = [min(length, prompt) for _, length, prompt in sequences]
    made = Attending(G * group, G, D, [start for start, _, _ in sequences], slots=400, dtype=torch.bfloat16)
    made.turned = Turn(torch.ones(400, D), torch.zeros(400, D), False)
    q, k, v = made.inputs(sum(lengths))
    most = -(-400 // size)
    table = torch.randperm(most * len(lengths)).view(len(lengths), most)

    def paged() -> tuple[Tensor, Tensor]:
        return in_pages(made.keys, table, size), in_pages(made.values, table, size)

    found = [
        with_threads(threads, lambda what=what: made.native(q, k, v, lengths, *paged(), table, what))
        for what in (prompts, lengths, [0] * len(lengths))
    ]
    mine = torch.cat([torch.arange(n) < p for n, p in zip(lengths, prompts, strict=True)])[:, None]
    assert torch.equal(found[0], torch.where(mine, found[1], found[2]))
    exact = made.plainly(q, lengths, *made.kept(k, v, lengths))
    assert (found[1] - exact).norm() <= 0.01 * exact.norm()
