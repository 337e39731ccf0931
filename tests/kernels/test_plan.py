"""A plan's operations, one at a time, against torch: at every level of instructions, and each row the same to the bit
alone, among others, in pieces and with any number of threads."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from qkv.kernels.dequantize import dequantize
from qkv.kernels.native import LEVELS, TYPES, Native, native, reason
from qkv.kernels.plan import ACTIVATIONS, FLOATS, Buffer, Matrix, Norm, Plan, Turn
from qkv.nn.mlp import ACTIVATIONS as TORCH
from tests.kernels.test_dequantize import random_blocks

LIBRARY = native()
ROWS = (1, 3, 8, 9, 16, 17, 40)  # below and above 8 and 16, of which products are made of


@pytest.fixture(autouse=True, scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level; where the processor lacks one, the best that it has is tested again."""
    yield library().use(request.param)
    library().use(None)


def library() -> Native:
    assert LIBRARY is not None, reason()
    return LIBRARY


def close(ours: Tensor, exact: Tensor, within: float = 1e-5) -> None:
    """Within a part of the largest: sums of numbers of both signs cancel."""
    assert ours.shape == exact.shape
    assert (ours - exact).abs().max() <= within * exact.abs().max()


def with_threads(count: int, work: Callable[[], Any]) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


def filled(plan: Plan, x: Tensor) -> Buffer:
    """A buffer that holds these rows."""
    buffer = plan.buffer(x.shape[1])
    buffer.at[: len(x)] = x
    return buffer


def run(plan: Plan, rows: int, picked: Sequence[int] = ()) -> None:
    plan.run([0] * rows, [rows], [0], picked)


# --- products --------------------------------------------------------------------------------------------------------


def weight(kind: str, N: int, K: int, seed: int = 0) -> tuple[Matrix, Tensor]:
    """A matrix [N, K] of a type, and its numbers."""
    if kind in FLOATS_BY_NAME:
        w = torch.randn(N, K, generator=torch.Generator().manual_seed(seed)).to(FLOATS_BY_NAME[kind])
        return Matrix.plain(w), w.float()
    raw = torch.from_numpy(random_blocks(kind, N, K // (256 if kind.endswith("K") else 32), seed))
    return Matrix.tiles(kind, library().pack(kind, raw), N, K), dequantize(raw.view(-1), kind, (N, K))


FLOATS_BY_NAME = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def whole(x: Tensor) -> Tensor:
    """Numbers that lose nothing when a packed product rounds 32 of them to 127 steps."""
    x = (x * 40).round().clamp(-126, 126)
    x[:, ::32] = 127
    return x


def product(kind: str, N: int, x: Tensor, **how: Any) -> Tensor:
    w, _ = weight(kind, N, x.shape[1])
    plan = Plan(library(), len(x))
    out = plan.buffer(N)
    plan.linear(filled(plan, x), [(w, None, out)], **how)
    run(plan, len(x))
    return out.at


@pytest.mark.parametrize("kind", [*FLOATS_BY_NAME, *TYPES])
def test_products(kind: str) -> None:
    plain = kind in FLOATS_BY_NAME
    for rows in ROWS:
        for N, K in ((1, 20), (37, 45), (70, 96)) if plain else ((1, 256), (37, 512), (70, 256)):
            x = torch.randn(rows, K) if plain else whole(torch.randn(rows, K))
            w = weight(kind, N, K)[1]
            exact = (x.double() @ w.double().T).float()
            size = x.abs() @ w.abs().T
            assert ((product(kind, N, x) - exact).abs() <= 2e-6 * size + 1e-30).all()


@pytest.mark.parametrize("kind", ["F32", "Q4_1", "Q6_K"])
def test_a_row_is_the_same_alone_among_others_and_with_any_threads(kind: str) -> None:
    x = torch.randn(40, 256)
    together = product(kind, 150, x)
    for threads in (2, 3, 4):
        assert torch.equal(with_threads(threads, lambda: product(kind, 150, x)), together)
    for size in ROWS:
        for first in range(0, 40, size):
            part = x[first : first + size]
            assert torch.equal(product(kind, 150, part), together[first : first + size]), (size, first)


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("kinds", [("F32", "F32", "BF16"), ("Q4_1", "Q6_K", "Q8_0"), ("Q4_K", "F16", "Q4_0")])
def test_several_that_read_the_same(kinds: Sequence[str], parts: int, rows: int) -> None:
    plan, x, sizes = Plan(library(), rows), whole(torch.randn(rows, 256)), (37, 16, 90)
    made = [weight(kind, N, 256, i) for i, (kind, N) in enumerate(zip(kinds, sizes, strict=True))][:parts]
    outs = [plan.buffer(N) for N in sizes[:parts]]
    biases = [torch.randn(N) * 100 if i != 1 else None for i, N in enumerate(sizes[:parts])]
    plan.linear(filled(plan, x), [(w, b, out) for (w, _), b, out in zip(made, biases, outs, strict=True)])
    run(plan, rows)
    for (_, w), bias, out in zip(made, biases, outs, strict=True):
        close(out.at, F.linear(x, w, bias))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_activations(kind: str, gated: bool, activation: str | None) -> None:
    act = TORCH[activation] if activation else torch.nn.Identity()
    for rows in (2, 20):
        x, N = whole(torch.randn(rows, 64)), 37
        (a, wa), (b, wb) = (weight(kind, N, 64, seed) for seed in (1, 2))
        ba, bb = torch.randn(N) * 0.1, torch.randn(N) * 0.1
        plan = Plan(library(), rows)
        outs = [plan.buffer(N), plan.buffer(N)]
        given = [(a, ba, outs[0]), (b, bb, outs[1])][: 1 + gated]
        plan.linear(filled(plan, x), given, activation=activation, gated=gated, scale=0.003)
        run(plan, rows)
        exact = act(x @ wa.T * 0.003 + ba)
        close(outs[0].at, exact * (x @ wb.T * 0.003 + bb) if gated else exact)


@settings(max_examples=15)
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40), st.sampled_from(sorted(TORCH)))
def test_any_number_activated(numbers: list[float], activation: str) -> None:
    x = torch.tensor(numbers)[:, None]
    plan = Plan(library(), len(x))
    out = plan.buffer(1)
    plan.linear(filled(plan, x), [(Matrix.plain(torch.ones(1, 1)), None, out)], activation=activation)
    run(plan, len(x))
    torch.testing.assert_close(out.at, TORCH[activation](x), rtol=2e-6, atol=1e-6)


def norm_of(kind: str, K: int, bias: bool) -> tuple[Norm, Callable[[Tensor], Tensor]]:
    w, b, eps = torch.randn(K), torch.randn(K) if bias else None, 1e-3
    if kind == "layer":
        return Norm(kind, w, b, eps), lambda x: F.layer_norm(x, (K,), w, b, eps)
    return Norm(kind, w, None, eps), lambda x: F.rms_norm(x, (K,), w, eps)


@pytest.mark.parametrize(("kind", "bias"), [("rms", False), ("layer", True), ("layer", False)])
@pytest.mark.parametrize("K", [5, 16, 45, 96])
def test_norms_alone_and_before_a_product(kind: str, bias: bool, K: int) -> None:
    norm, exact = norm_of(kind, K, bias)
    for rows in (1, 11):
        x, plus = torch.randn(rows, K) * 3 + 1, torch.randn(rows, 37)
        plan = Plan(library(), rows)
        inside, alone, beside, y = filled(plan, x), plan.buffer(K), filled(plan, x), filled(plan, plus)
        matrix, w = weight("F32", 37, K)
        plan.norm(inside, norm, alone)
        plan.norm(inside, norm, beside, residual=beside)  # in its own place
        plan.linear(inside, [(matrix, None, y)], norm=norm, residual=y)
        run(plan, rows)
        close(alone.at, exact(x))
        close(beside.at, x + exact(x))
        close(y.at, plus + exact(x) @ w.T)
        assert torch.equal(inside.at, x)


def test_a_norm_before_a_packed_product() -> None:
    norm, exact = norm_of("rms", 256, False)
    for rows in (2, 20):
        x = torch.randn(rows, 256)
        ours = product("Q4_K", 37, x, norm=norm)
        theirs = product("Q4_K", 37, exact(x))
        assert (ours - theirs).norm() < 5e-3 * theirs.norm()  # a number may be rounded the other way


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_only_the_rows_that_are_asked_for_to_a_place_of_each_step(kind: str) -> None:
    x = whole(torch.randn(30, 64))
    (matrix, w), plan = weight(kind, 70, 64), Plan(library(), 30)
    bias, inside = torch.randn(70), filled(plan, x)
    number = plan.linear(inside, [(matrix, bias, Buffer(70, torch.empty(0)))], scale=0.01, softcap=2.5, picked=True)
    exact = 2.5 * torch.tanh((x @ w.T * 0.01 + bias) / 2.5)
    for picked in ([29], [0, 3, 17], [], list(range(30)), [5, 5, 2]):
        out = torch.full((len(picked) + 1, 70), 7.0)
        plan.place(number, out)
        run(plan, 30, picked)
        close(torch.cat((out[:-1], exact[:1])), torch.cat((exact[picked], exact[:1])))
        assert (out[-1] == 7).all()


# --- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*FLOATS_BY_NAME, *TYPES])
@pytest.mark.parametrize("positions", [None, 12])
def test_rows_of_a_table(kind: str, positions: int | None) -> None:
    (matrix, w), ids = weight(kind, 21, 256), [20, 0, 3, 3, 16, 7]
    added = torch.randn(positions, 256) if positions else None
    plan = Plan(library(), 8)
    out = plan.buffer(256)
    plan.embed(matrix, out, scale=1.5, positions=added)
    plan.run(ids, [2, 4], [10, 3], [])
    exact = w[ids] * 1.5
    close(out.at[:6], exact if added is None else exact + added[[10, 11, 3, 4, 5, 6]], 1e-6)


# --- attention -------------------------------------------------------------------------------------------------------


class Attending:
    """One attention's parts at random, and a cache that sequences have filled so far."""

    def __init__(
        self, H: int, G: int, D: int, starts: Sequence[int], *, slots: int = 700, dtype: torch.dtype = torch.float32,
        dims: int = 0, interleaved: bool = False, norm: str | None = None, alibi: bool = False,
        softcap: float | None = None,
    ) -> None:  # fmt: skip
        self.H, self.G, self.D, self.starts, self.scale, self.softcap = H, G, D, list(starts), D**-0.5, softcap
        self.keys, self.values = (torch.randn(len(starts), G, slots, D).to(dtype) for _ in range(2))
        self.slopes = torch.rand(H) * 0.1 if alibi else None
        self.norms = None
        if norm is not None:
            made = (norm_of(norm, D, norm == "layer"), norm_of(norm, D, norm == "layer"))
            self.norms, self.normed = (made[0][0], made[1][0]), (made[0][1], made[1][1])
        self.turned = None
        if dims:
            angles = torch.randn(slots, dims // 2) * 3
            side = -1 if interleaved else -2
            cos, sin = (
                torch.stack(pair, side).flatten(-2)
                for pair in ((angles.cos(), angles.cos()), (-angles.sin(), angles.sin()))
            )
            self.turned = Turn(cos, sin, interleaved)

    def native(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], keys: Tensor, values: Tensor,
        pages: Tensor | None = None, prompts: Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """A step: q [T, H · D], k and v [T, G · D]. It fills the keys and values, of sequences or of these pages."""
        plan = Plan(library(), len(q))
        out = plan.buffer(self.H * self.D)
        number = plan.attend(
            filled(plan, q), filled(plan, k), filled(plan, v), out, heads=self.H, kv_heads=self.G, scale=self.scale,
            softcap=self.softcap, slopes=self.slopes, norms=self.norms,
        )  # fmt: skip
        if self.turned is not None:
            plan.turn(number, self.turned)
        plan.keep(number, keys, values)
        plan.run([0] * len(q), lengths, self.starts[: len(lengths)], [], pages, prompts)
        return out.at

    def kept(self, k: Tensor, v: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The keys and values as a step should leave them."""
        keys, values, first = self.keys.clone(), self.values.clone(), 0
        for b, n in enumerate(lengths):
            at = slice(self.starts[b], self.starts[b] + n)
            K, V = (x[first : first + n].view(n, -1, self.D) for x in (k, v))
            K = self.rotate(K if self.norms is None else self.normed[1](K), at)
            keys[b, :, at], values[b, :, at] = K.transpose(0, 1).to(keys.dtype), V.transpose(0, 1).to(keys.dtype)
            first += n
        return keys, values

    def plainly(self, q: Tensor, lengths: Sequence[int], keys: Tensor, values: Tensor) -> Tensor:
        """The equation in float64, over these keys and values."""
        outs, first = [], 0
        for b, n in enumerate(lengths):
            at = slice(self.starts[b], self.starts[b] + n)
            Q = q[first : first + n].view(n, -1, self.D)
            Q = self.rotate(Q if self.norms is None else self.normed[0](Q), at)
            seen = [x[b, :, : at.stop].double().repeat_interleave(self.H // self.G, 0) for x in (keys, values)]
            scores = Q.transpose(0, 1).double() @ seen[0].mT * self.scale
            scores = self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores
            distance = torch.arange(at.stop) - torch.arange(at.start, at.stop)[:, None]
            if self.slopes is not None:
                scores = scores + self.slopes.double()[:, None, None] * distance
            weights = scores.masked_fill(distance > 0, float("-inf")).softmax(-1)
            outs.append((weights @ seen[1]).transpose(0, 1).flatten(1).float())
            first += n
        return torch.cat(outs)

    def rotate(self, x: Tensor, at: slice) -> Tensor:
        if self.turned is None:
            return x
        n = self.turned.cos.shape[1]
        cos, sin, part = self.turned.cos[at, None], self.turned.sin[at, None], x[..., :n]
        other = part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if self.turned.interleaved else part.roll(n // 2, -1)
        return torch.cat((part * cos + other * sin, x[..., n:]), -1)

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.randn(rows, self.H * self.D) * 2, *(torch.randn(rows, self.G * self.D) for _ in range(2))

    def holds(self, lengths: Sequence[int]) -> None:
        """A step keeps its keys and values and no others, and gives what the equation gives over what it has kept."""
        q, k, v = self.inputs(sum(lengths))
        keys, values = self.kept(k, v, lengths)
        mine = self.keys.clone(), self.values.clone()
        out = self.native(q, k, v, lengths, *mine)
        assert torch.equal(mine[1], values)
        if self.norms is None and self.turned is None:
            assert torch.equal(mine[0], keys)
        exactly = keys.dtype == torch.float32  # else a number just between two may be rounded the other way
        torch.testing.assert_close(mine[0], keys, rtol=1e-5 if exactly else 2**-7, atol=1e-5)
        close(out, self.plainly(q, lengths, *mine))


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "alibi": {"alibi": True},
    "halves": {"dims": -1},
    "in turn": {"dims": -1, "interleaved": True},
    "partly": {"dims": 4},
    "partly in turn": {"dims": 6, "interleaved": True},
    "rms": {"norm": "rms", "dims": -1},
    "layer": {"norm": "layer"},
}


DTYPES = (torch.float32, torch.bfloat16)  # of a cache
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("D", [8, 20, 64, 80, 128])
@pytest.mark.parametrize("how", HOW)
def test_attention(how: str, D: int, dtype: torch.dtype) -> None:
    options = {**HOW[how], **({"dims": D} if HOW[how].get("dims") == -1 else {})}
    for H, G in ((4, 4), (6, 2), (3, 1)):
        Attending(H, G, D, [5, 0, 40], slots=64, dtype=dtype, **options).holds([1, 7, 12])


@dtypes
@pytest.mark.parametrize("how", ["plain", "softcap", "alibi", "halves"])
def test_attention_over_many_keys(how: str, dtype: torch.dtype) -> None:
    options = {**HOW[how], **({"dims": 20} if HOW[how].get("dims") == -1 else {})}
    for starts, lengths in (
        ([600], [1]),
        ([255], [1]),
        ([256], [1]),
        ([250], [20]),
        ([599, 0, 255, 257], [1, 3, 9, 40]),
    ):
        Attending(6, 2, 20, starts, dtype=dtype, **options).holds(lengths)


@dtypes
@pytest.mark.parametrize("options", [{}, {"alibi": True, "softcap": 5.0}, {"norm": "rms", "dims": 20}])
def test_a_row_sees_the_same_alone_among_others_in_pieces_and_with_any_threads(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    starts, lengths = [3, 590, 250], [5, 17, 33]
    made = Attending(4, 2, 20, starts, dtype=dtype, **options)
    q, k, v = made.inputs(sum(lengths))
    kept = made.keys.clone(), made.values.clone()
    together = made.native(q, k, v, lengths, *kept)
    for threads in (2, 3, 4):
        again = with_threads(threads, lambda: made.native(q, k, v, lengths, made.keys.clone(), made.values.clone()))
        assert torch.equal(again, together)
    for b, end in enumerate(accumulate(lengths)):
        for size in (1, 8, 11, 40):
            own = made.keys[b : b + 1].clone(), made.values[b : b + 1].clone()
            for first in range(end - lengths[b], end, size):
                part = slice(first, min(first + size, end))
                made.starts = [starts[b] + first - end + lengths[b]]
                alone = made.native(q[part], k[part], v[part], [part.stop - first], *own)
                assert torch.equal(alone, together[part]), (b, size, first)
            made.starts = starts
            assert all(torch.equal(one[0], all_[b]) for one, all_ in zip(own, kept, strict=True))


@settings(max_examples=12)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), min_size=1, max_size=6),
    G=st.integers(1, 3), group=st.integers(1, 4), D=st.integers(1, 70), threads=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_any_batch(
    sequences: list[tuple[int, int]], G: int, group: int, D: int, threads: int, dtype: torch.dtype
) -> None:
    made = Attending(G * group, G, D, [start for start, _ in sequences], slots=320, dtype=dtype)
    with_threads(threads, lambda: made.holds([length for _, length in sequences]))


def in_pages(x: Tensor, table: Tensor, size: int) -> Tensor:
    """Keys [B, G, slots, D] in pages [pages, G, size, D] by a table [B, most]; in pages that it doesn't name, NaN."""
    pages = x.new_full((int(table.max()) + 3, x.shape[1], size, x.shape[3]), float("nan"))
    padded = torch.cat((x, x.new_zeros(*x.shape[:2], -x.shape[2] % size, x.shape[3])), 2)
    pages[table] = padded.unflatten(2, (-1, size)).transpose(1, 2)
    return pages


def out_of_pages(pages: Tensor, table: Tensor, slots: int) -> Tensor:
    return pages[table].transpose(1, 2).flatten(2, 3)[:, :, :slots]


@settings(max_examples=15)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20)), min_size=1, max_size=6),
    size=st.sampled_from([16, 32, 64]), G=st.integers(1, 3), group=st.integers(1, 4), D=st.integers(1, 70),
    threads=st.integers(1, 4), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16),
    how=st.sampled_from(["plain", "softcap", "alibi", "rms"]),
)  # fmt: skip
def test_in_pages_it_is_the_same_to_the_bit(
    sequences: list[tuple[int, int]], size: int, G: int, group: int, D: int, threads: int, dtype: torch.dtype,
    seed: int, how: str,
) -> None:  # fmt: skip
    """In any pages, some of which sequences share; and nothing else is read or written."""
    starts, lengths = [list(x) for x in zip(*sequences, strict=True)]
    options = {**HOW[how], **({"dims": D // 2 * 2} if HOW[how].get("dims") == -1 else {})}
    made, random = Attending(G * group, G, D, starts, slots=320, dtype=dtype, **options), torch.Generator()
    random.manual_seed(seed)
    each = 320 // size
    table = torch.randperm(len(starts) * each + 5, generator=random)[: len(starts) * each].view(-1, each)
    for x in (made.keys, made.values):  # every sequence begins as the first does
        x[:] = torch.where(torch.arange(320)[:, None] < starts[0] // size * size, x[0], x)
    for b, start in enumerate(starts):
        shared = min(start, starts[0]) // size
        table[b, :shared] = table[0, :shared]
    q, k, v = made.inputs(sum(lengths))
    pages = [in_pages(x, table, size) for x in (made.keys, made.values)]
    untouched = torch.ones(len(pages[0]), dtype=torch.bool).index_fill_(0, table.flatten(), False)
    plainly = made.keys.clone(), made.values.clone()
    exact = made.native(q, k, v, lengths, *plainly)
    assert torch.equal(with_threads(threads, lambda: made.native(q, k, v, lengths, *pages, table)), exact)
    for x, y in zip(pages, plainly, strict=True):
        assert torch.equal(out_of_pages(x, table, 320), y)
        assert x[untouched].isnan().all()


def test_a_table_that_the_library_does_not_take() -> None:
    made = Attending(2, 1, 16, [0], slots=16)
    for table in (torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)):
        with pytest.raises(AssertionError, match="another table"):
            made.native(*made.inputs(1), [1], made.keys, made.values, table)


SPECIAL = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x80000000, 1, 0x8000,
           0x18000, 0x7FFFFF, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF]  # fmt: skip


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from(SPECIAL), min_size=1, max_size=40))
def test_any_bits_are_kept_as_torch_rounds_them(bits: list[int]) -> None:
    """To the nearest, ties to even: infinite, subnormal, of either sign; a NaN stays one."""
    given_ = torch.tensor(bits).to(torch.uint32).view(torch.float32)[None]
    made = Attending(1, 1, len(bits), [3], slots=8, dtype=torch.bfloat16)
    keys, values = made.keys.clone(), made.values.clone()
    made.native(torch.zeros_like(given_), given_, given_, [1], keys, values)
    exact, known = given_[0].bfloat16(), ~given_[0].isnan()
    for ours in (keys[0, 0, 3], values[0, 0, 3]):
        assert torch.equal(ours.isnan(), ~known)
        assert torch.equal(ours.view(torch.int16)[known], exact.view(torch.int16)[known])


@dtypes
def test_a_number_that_is_not_finite_stays_with_its_row(dtype: torch.dtype) -> None:
    made = Attending(2, 1, 16, [4, 4], slots=16, dtype=dtype)
    q, k, v = made.inputs(2)
    q[0, 0] = float("nan")
    out = made.native(q, k, v, [1, 1], made.keys, made.values)
    assert out[0, :16].isnan().all()
    assert torch.isfinite(out[0, 16:]).all()
    assert torch.isfinite(out[1]).all()


# --- the plan --------------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_are_refused_before_anything_runs() -> None:
    plan = Plan(library(), 1)
    with pytest.raises(AssertionError, match="other sizes"):
        plan.linear(plan.buffer(8), [(weight("F32", 4, 9)[0], None, plan.buffer(4))])
    with pytest.raises(AssertionError, match="other sizes"):
        plan.linear(plan.buffer(9), [(weight("F32", 4, 9)[0], None, plan.buffer(5))])
    with pytest.raises(AssertionError, match="a sum of other sizes"):
        plan.linear(plan.buffer(9), [(weight("F32", 4, 9)[0], None, plan.buffer(4))], residual=plan.buffer(5))
    with pytest.raises(KeyError):
        Matrix.plain(torch.zeros(2, 2, dtype=torch.float64))
    assert set(FLOATS_BY_NAME.values()) == set(FLOATS)


def test_a_library_of_other_operations_is_refused() -> None:
    class Other:
        qkv_step = library().library.qkv_step

        @staticmethod
        def qkv_size_of_op() -> int:
            return 8

    with pytest.raises(RuntimeError, match="operations take 8 bytes, not"):
        Plan(type("Fake", (), {"library": Other})(), 1)
