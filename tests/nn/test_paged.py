"""In pages an answer is the one of a cache of its own, whoever else is in the step, whatever lies in other pages, and
however a text came to be there: for every family, to the bit where the native library makes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.generate.step import Reader
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache
from qkv.nn.native_step import FEW, NativeStep
from qkv.nn.paged import Paged, PagedCache, bytes_a_page
from qkv.nn.stack import Transformer
from tests.families.test_invariants import longest
from tests.families.test_native_step import SERVED, SPECS, made, windowed
from tests.nn.test_cache import CLOSE, MIXERS
from tests.nn.test_fixed import seq2seq
from tests.nn.test_lower import packed
from tests.tiny import VOCAB, tiny

Read = Callable[[list[list[int]], Cache], Sequence[Tensor]]  # a step: numbers of each new token, sequence by sequence
seeds = st.integers(0, 2**32)


def by_torch(model: Transformer) -> Read:
    def read(chunks: list[list[int]], cache: Cache) -> Sequence[Tensor]:
        stream, batch = model.batch(chunks, cache=cache)
        with torch.no_grad():
            return batch.split(model.states(stream, batch, cache))

    return read


def natively(model: Transformer) -> Read:
    step = NativeStep(model)

    def read(chunks: list[list[int]], cache: Cache) -> Sequence[Tensor]:
        stream, batch = model.batch(chunks, cache=cache)
        assert step.refuses(batch, cache) is None
        return batch.split(step(stream.tolist(), batch, cache, range(len(stream))))

    return read


def alone(read: Read, new: Callable[[], Cache], text: list[int], most: int) -> Tensor:
    """What each token of a text gives in a cache of its own."""
    cache = new()
    return torch.cat([read([text[at : at + most]], cache)[0] for at in range(0, len(text), most)])


@dataclass
class Row:
    """A sequence: its text, of which `read` tokens are in its pages."""

    text: list[int]
    source: list[int]
    read: int = 0
    pages: list[int] = field(default_factory=list)
    source_pages: list[int] = field(default_factory=list)


class Desk:
    """Who has which page, as a server would: rows come, go, are forked, thrown out and read again."""

    def __init__(self, model: Transformer, random: Random, *, longest: int, most: int, size: int) -> None:
        self.model, self.random, self.longest, self.most, self.size = model, random, longest, most, size
        self.rows: list[Row] = []
        each = -(-longest // size) + (2 if model.encoder is not None else 0)
        self.cache = model.new_paged_cache(4 * each, size)
        for memory in self.cache.pool.memory:
            memory.fill_(float("nan"))
        self.users = [0] * self.cache.pool.count

    def take(self, count: int) -> list[int]:
        free = [page for page, users in enumerate(self.users) if not users]
        return self.share(self.random.sample(free, count))

    def share(self, pages: list[int]) -> list[int]:
        for page in pages:
            self.users[page] += 1
        return list(pages)

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.users[page] -= 1

    def ids(self, count: int) -> list[int]:
        return [self.random.randrange(3, self.model.spec.vocab) for _ in range(count)]

    def join(self) -> None:
        row = Row(self.ids(self.random.randint(1, self.longest)), [])
        if self.model.encoder is not None:
            row.source = self.ids(self.random.randint(1, 2 * self.size))
            row.source_pages = self.take(-(-len(row.source) // self.size))
            with torch.no_grad():
                self.cache.remember(self.model.encode([row.source]), [row.source_pages])
        self.rows.append(row)

    def leave(self, row: Row | None = None) -> None:
        row = row or self.random.choice(self.rows)
        self.rows = [other for other in self.rows if other is not row]
        self.release(row.pages + row.source_pages)

    def fork(self) -> None:
        """Another that goes on differently: full pages are shared, the last is copied."""
        row = self.random.choice(self.rows)
        full = row.read // self.size
        child = Row(row.text[: row.read] + self.ids(self.longest)[row.read :], row.source, row.read)
        child.pages, child.source_pages = self.share(row.pages[:full]), self.share(row.source_pages)
        if row.read % self.size:
            child.pages += self.take(1)
            self.cache.copy([(row.pages[full], child.pages[full])])
        self.rows.append(child)

    def throw_out(self) -> None:
        row = self.random.choice(self.rows)
        self.release(row.pages)
        row.pages, row.read = [], 0

    def turn(self) -> None:
        """Who is here before the next step."""
        for _ in range(self.random.randint(0, 3)):
            now = [self.throw_out] if self.rows else [self.join]
            now += [self.leave] if len(self.rows) > 1 else []
            now += [self.join] * 3 + [self.fork] * bool(self.rows) * 2 if len(self.rows) < 4 else []
            self.random.choice(now)()
        for row in [row for row in self.rows if row.read == len(row.text)]:
            self.leave(row)

    def step(self, read: Read) -> list[tuple[Row, int, Tensor]]:
        """Some rows, in any order, read on → each, where it was, and what its new tokens gave."""
        rows = self.random.sample(self.rows, self.random.randint(min(1, len(self.rows)), len(self.rows)))
        counts, left = list[int](), self.most
        for row in rows:
            fair = left // (len(rows) - len(counts))
            counts.append(self.random.randint(1, max(1, min(len(row.text) - row.read, fair))))
            left -= counts[-1]
            row.pages += self.take(-(-(row.read + counts[-1]) // self.size) - len(row.pages))
        if not rows:
            return []
        sources = [[row.source_pages for row in rows], [len(row.source) for row in rows]] if rows[0].source else []
        self.cache.place([row.pages for row in rows], [row.read for row in rows], *sources)
        before = [row.read for row in rows]
        outs = read([row.text[row.read : row.read + n] for row, n in zip(rows, counts, strict=True)], self.cache)
        for row, n in zip(rows, counts, strict=True):
            row.read += n
        assert self.cache.lengths == [row.read for row in rows]
        return list(zip(rows, before, outs, strict=True))


def history(desk: Desk, read: Read, exact: Callable[[Row], Tensor], check: Callable[[Tensor, Tensor], None]) -> None:
    for _ in range(8):
        desk.turn()
        for row, at, out in desk.step(read):
            check(out, exact(row)[at : at + len(out)])


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, **CLOSE)


def equal(a: Tensor, b: Tensor) -> None:
    assert torch.equal(a, b)


WITH_DECODER = sorted({name for (name, _), model in SPECS.items() if model.decoder is not None})


@settings(max_examples=3)
@given(seed=seeds)
@pytest.mark.parametrize("name", WITH_DECODER)
def test_every_family_gives_what_it_gives_at_once(name: str, seed: int) -> None:
    random = Random(seed)
    model = made(name, random.choice([v for (n, v), one in SPECS.items() if n == name and one.decoder is not None]))

    def exact(row: Row) -> Tensor:
        stream, batch = model.batch([row.text])
        with torch.no_grad():
            return model.states(stream, batch, memory=model.encode([row.source]) if row.source else None)

    desk = Desk(model, random, longest=min(longest(model), random.choice([20, 40])), most=30, size=16)
    history(desk, by_torch(model), exact, close)


@settings(max_examples=3)
@given(seed=seeds)
@pytest.mark.parametrize("name", sorted({name for name, _ in SERVED}))
def test_every_family_gives_natively_what_it_gives_alone_to_the_bit(name: str, seed: int) -> None:
    random = Random(seed)
    model = made(name, random.choice([v for n, v in SERVED if n == name]))
    most, read = windowed(model) or 40, natively(model)
    desk = Desk(model, random, longest=most, most=FEW, size=16)
    history(desk, read, lambda row: alone(read, lambda: model.new_cache(most), row.text, FEW), equal)


@settings(max_examples=4)
@given(seed=seeds, threads=st.integers(1, 3), size=st.sampled_from([16, 32, 64]))
def test_packed_weights_too_with_any_threads(seed: int, threads: int, size: int) -> None:
    """Over more keys than the library takes in one go, kept in 16 bits."""
    model = packed()
    read, before = natively(model), torch.get_num_threads()
    desk = Desk(model, Random(seed), longest=600, most=400, size=size)
    assert desk.cache.dtype == torch.bfloat16
    torch.set_num_threads(threads)
    try:
        history(desk, read, lambda row: alone(read, model.new_cache, row.text, 100), equal)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=8)
@given(seed=seeds, size=st.sampled_from([16, 32]))
@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_gives_what_it_gives_at_once(name: str, seed: int, size: int) -> None:
    """Windows too: what they don't see stays in its pages, and isn't seen."""
    model = tiny(*MIXERS[name])

    def exact(row: Row) -> Tensor:
        stream, batch = model.batch([row.text])
        with torch.no_grad():
            return model.states(stream, batch)

    history(Desk(model, Random(seed), longest=50, most=60, size=size), by_torch(model), exact, close)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_16_bits_torch_and_the_library_go_on_with_what_the_other_has_kept(dtype: torch.dtype) -> None:
    model = tiny()
    read, native = by_torch(model), natively(model) if dtype == torch.bfloat16 else by_torch(model)
    paged, other = model.new_paged_cache(3, dtype=dtype), model.new_cache(dtype=dtype)
    paged.place([[2, 0], [1]], [0, 0])
    assert paged.nbytes == 2 * 2 * 3 * 16 * 2 * 4 * 2
    for turn, chunks in enumerate(([[1, 2, 3], [5]], [[4], [6, 7]], [[9] * 14, [1]])):
        if turn % 2 == 0 or dtype == torch.float16:
            ours, theirs = read(chunks, paged), read(chunks, other)
        else:
            ours = [model.logits(x) for x in read(chunks, other)]
            theirs = native(chunks, paged)
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).norm() <= 0.02 * b.norm()


def test_one_step_after_another_needs_no_new_place() -> None:
    model, text = tiny(), [i * 7 % VOCAB for i in range(40)]
    cache, read = model.new_paged_cache(9), by_torch(model)
    cache.place([[3, 8], [1, 5]], [0, 0])
    outs = [read([text[i : i + 8], text[i + 1 : i + 3]], cache) for i in range(0, 32, 8)]
    close(torch.cat([out[0] for out in outs]), alone(read, model.new_cache, text[:32], 32))
    assert cache.lengths == [32, 8]
    cache.truncate([20, 8])
    cache.select([1, 0])
    assert cache.undoable(20) > 1000
    close(read([[9], text[20:25]], cache)[1], alone(read, model.new_cache, text[:25], 25)[20:])
    assert cache.lengths == [9, 25]
    for wrong, why in (([0, 0], "twice"), ([2], "holds 2 sequences"), ([], "holds 2 sequences")):
        with pytest.raises(InputError, match=why):
            cache.select(wrong)
    cache.select([1])
    assert cache.lengths == [25]
    close(read([text[25:30]], cache)[0], alone(read, model.new_cache, text[:30], 30)[25:])


def test_pages_that_are_not_placed_stay_as_they_are() -> None:
    for read in (by_torch, natively):
        model = tiny()
        cache = model.new_paged_cache(6)
        for memory in cache.pool.memory:
            memory.normal_()
        before = [memory.clone() for memory in cache.pool.memory]
        cache.place([[4, 1], [3]], [15, 0])
        read(model)([[1, 2], [5]], cache)
        for memory, old in zip(cache.pool.memory, before, strict=True):
            changed = (memory != old).view(6, 2, 16, 4).any(-1).any(1)
            assert changed.nonzero().tolist() == [[1, 0], [3, 0], [4, 15]]


def test_what_is_not_finite_stays_with_its_row() -> None:
    model, read = tiny(), by_torch(tiny())
    cache = model.new_paged_cache(4)
    for memory in cache.pool.memory:
        memory.fill_(float("inf"))
    cache.place([[2, 3], [1]], [0, 0])
    assert all(torch.isfinite(out).all() for out in read([[1] * 20, [2]], cache))


def test_pages_are_copied_as_they_all_were() -> None:
    cache = tiny().new_paged_cache(5)
    for i, memory in enumerate(cache.pool.memory):
        memory[:] = torch.arange(5)[:, None] + 10 * i
    cache.copy([(0, 1), (1, 2), (4, 4)])
    cache.copy([])
    for i, memory in enumerate(cache.pool.memory):
        assert (memory == torch.tensor([0, 0, 1, 3, 4])[:, None] + 10 * i).all()
    for pairs, why in (([(0, 5)], "pages 0 to 4"), ([(-1, 2)], "pages 0 to 4"), ([(0, 1), (2, 1)], "two copies")):
        with pytest.raises(InputError, match=why):
            cache.copy(pairs)


# --- a decoder beside an encoder -------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(seed=seeds)
def test_a_decoder_whose_two_attentions_keep_other_sizes(seed: int) -> None:
    model = seq2seq()

    def exact(row: Row) -> Tensor:
        stream, batch = model.batch([row.text])
        with torch.no_grad():
            return model.states(stream, batch, memory=model.encode([row.source]))

    history(Desk(model, Random(seed), longest=20, most=30, size=16), by_torch(model), exact, close)


def test_encoded_together_in_16_bits_and_looked_at_in_any_order() -> None:
    model = seq2seq()
    cache, read = model.new_paged_cache(6, dtype=torch.bfloat16), by_torch(model)
    sources = [[1, 2, 3], list(range(20))]
    memory = model.encode(sources)
    cache.remember(memory, [[5], [0, 2]])
    cache.place([[1], [3], [4]], [0, 0, 0], [[0, 2], [5], [0, 2]], [20, 3, 20])
    first = read([[7], [7, 8], [9]], cache)
    cache.select([1, 2])
    for ours, source, text in zip(
        [*first, *read([[4], [4]], cache)], [1, 0, 1, 0, 1], [[7], [7, 8], [9], [7, 8, 4], [9, 4]], strict=True
    ):
        stream, batch = model.batch([text])
        with torch.no_grad():
            exact = model.states(stream, batch, memory=model.encode([sources[source]]))[-len(ours) :]
        assert (ours - exact).norm() <= 0.02 * exact.norm()


def test_an_encoders_pages_are_asked_for_and_only_there() -> None:
    model = seq2seq()
    cache, memory = model.new_paged_cache(4), model.encode([[1, 2], [3]])
    with pytest.raises(InputError, match="one table of an encoder's pages for each sequence, not 0 for 1"):
        cache.place([[0]], [0])
    for tables, why in (
        ([[0], [0]], "is shared"),
        ([[0]], "placed for 1 sequences, not for 2"),
        ([[0], []], "at least one page"),
        ([[0], [4]], "no page 4"),
    ):
        with pytest.raises(InputError, match=why):
            cache.remember(memory, tables)
    with pytest.raises(InputError, match="which don't hold 0 and 17 more"):
        cache.remember(model.encode([[1] * 17]), [[0]])
    plain = tiny().new_paged_cache(2)
    with pytest.raises(InputError, match="looks at no encoder"):
        plain.remember(memory, [[0], [1]])
    with pytest.raises(InputError, match="no encoder's pages, not 1 for 1"):
        plain.place([[0]], [0], [[1]], [1])
    cache.remember(memory, [[0], [1]])
    cache.place([[2], [3]], [0, 0], [[0], [1]], [2, 1])
    layer: Any = cache.layers[0]
    with pytest.raises(InputError, match="placed for 2 sequences, not for 1"):
        layer.fixed.look(Batch([1], [0], torch.device("cpu")))
    cache.place([[2], [3]], [0, 0], [[0], [3]], [2, 1])
    with pytest.raises(InputError, match="is shared"):
        model.batch([[1], [1]], cache=cache)


# --- sizes and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
def test_bytes_of_a_page(dtype: torch.dtype | None) -> None:
    """2 · layers · tokens · heads · numbers · bytes of one, of the wider attention where there are two."""
    size = (dtype or torch.float32).itemsize
    assert bytes_a_page(tiny(layers=3), dtype=dtype) == 2 * 3 * 16 * 2 * 4 * size
    assert bytes_a_page(seq2seq(), 32, dtype) == 2 * 2 * 32 * 2 * 4 * size
    assert bytes_a_page(packed(), dtype=dtype) == 2 * 2 * 16 * 2 * 8 * (dtype or torch.bfloat16).itemsize
    assert tiny().new_paged_cache(7).nbytes == 7 * bytes_a_page(tiny())


def test_a_cross_attention_wider_than_its_decoders_own() -> None:
    full, causal = (spec.Attention(4, heads, mask=mask) for heads, mask in ((4, spec.Full()), (1, spec.Causal())))
    kept = [
        spec.Stack((spec.Block(mixer, spec.Plain(24), spec.RMS(), cross=cross),), 2, spec.RMS())
        for mixer, cross in ((full, None), (causal, full))
    ]
    model = Transformer(spec.Model(VOCAB, 16, kept[1], kept[0], start=0)).eval()
    assert bytes_a_page(model) == 2 * 2 * 16 * 4 * 4 * 4
    cache = model.new_paged_cache(2)
    cache.remember(model.encode([[1, 2, 3]]), [[1]])
    cache.place([[0]], [0], [[1]], [3])
    with torch.no_grad():
        stream, batch = model.batch([[5, 6]])
        exact = model.states(stream, batch, memory=model.encode([[1, 2, 3]]))
    close(by_torch(model)([[5, 6]], cache)[0], exact)


def test_what_cannot_be_made() -> None:
    for pages, size in ((0, 16), (-1, 16), (2, 0), (2, 8), (2, 24), (2, -16)):
        with pytest.raises(InputError, match=f"a multiple of 16 tokens, not {pages} of {size}"):
            tiny().new_paged_cache(pages, size)
    with pytest.raises(InputError, match="not in int8"):
        tiny().new_paged_cache(1, dtype=torch.int8)
    with pytest.raises(ConfigError, match="mask Full"):
        tiny(spec.Attention(4, 2, mask=spec.Full())).new_paged_cache(1)


PLACES: list[tuple[list[list[int]], list[int], str]] = [
    ([], [], "at least one sequence"),
    ([[0], []], [0, 0], "at least one page"),
    ([[0]], [0, 0], "placed for 1 sequences, not for 2"),
    ([[0, 4]], [3], "no page 4 in a cache of 4"),
    ([[0], [-1]], [3, 3], "no page -1"),
    ([[0, 1]], [33], "sequence 0 has 2 pages of 16 tokens, which don't hold 0 and 33 more"),
    ([[0, 1]], [-1], "sequence 0 has"),
]


@pytest.mark.parametrize(("tables", "lengths", "why"), PLACES)
def test_places_that_are_not_there_change_nothing(tables: list[list[int]], lengths: list[int], why: str) -> None:
    model = tiny()
    cache = model.new_paged_cache(4)
    cache.place([[2, 1]], [3])
    with pytest.raises(InputError, match=why):
        cache.place(tables, lengths)
    assert cache.lengths == [3]
    assert [row.shape for row in by_torch(model)([[1] * 20], cache)] == [(20, 16)]


def test_a_step_that_does_not_fit_its_pages_has_not_begun() -> None:
    model = tiny()
    cache = model.new_paged_cache(4)
    with pytest.raises(InputError, match="`place`"):
        model.batch([[1]], cache=cache)
    for layer in cache.layers:
        assert isinstance(layer, Paged)
        with pytest.raises(InputError, match="`place`"):
            layer.extend(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), Batch([1], [0], torch.device("cpu")))
    cache.place([[0, 1], [2]], [17, 9])
    for chunks, why in (
        ([[1]], "placed for 2 sequences, not for 1"),
        ([[1], [1] * 8], "sequence 1 has 1 pages of 16 tokens, which don't hold 9 and 8 more"),
    ):
        with pytest.raises(InputError, match=why):
            model.batch(chunks, cache=cache)
        with pytest.raises(InputError, match=why):
            Reader(model)(chunks, cache, [1] * len(chunks))
    unchecked = Batch([1, 8], [17, 9], torch.device("cpu"))
    with pytest.raises(InputError, match="sequence 1 has"):
        model.states(torch.ones(9, dtype=torch.long), unchecked, cache)
    with pytest.raises(InputError, match="sequence 1 has"):
        NativeStep(model)([1] * 9, unchecked, cache, [0])
    assert cache.lengths == [17, 9]


@pytest.mark.parametrize(("tables", "lengths", "shared"), [
    ([[0, 1], [0, 2]], [16, 16], False), ([[0, 1], [0, 2]], [16, 15], True), ([[0, 1], [2, 1]], [16, 16], True),
    ([[0, 0]], [15], True), ([[3, 2], [3]], [16, 10], True), ([[0, 1, 2], [1]], [30, 0], True),
])  # fmt: skip
def test_a_page_that_is_shared_is_only_read(tables: list[list[int]], lengths: list[int], shared: bool) -> None:
    model = tiny()
    cache = model.new_paged_cache(4)
    cache.place(tables, lengths)
    chunks = [[1]] * len(tables)
    if shared:
        with pytest.raises(InputError, match="a page that new tokens go to is shared"):
            model.batch(chunks, cache=cache)
    else:
        model.batch(chunks, cache=cache)


def test_a_model_with_another_shape_is_refused() -> None:
    cache = tiny(spec.Attention(4, 4)).new_paged_cache(2)
    cache.place([[0]], [0])
    with pytest.raises(InputError, match="the model's own new_cache"):
        NativeStep(tiny())([1], Batch([1], [0], torch.device("cpu")), cache, [0])


def test_beyond_a_window_torch_goes_on_with_the_same_pages() -> None:
    model = tiny(spec.Attention(4, 2, mask=spec.Window(6), position=spec.Rotary()))
    text, read, cache = [i * 7 % VOCAB for i in range(20)], Reader(model), model.new_paged_cache(2)
    cache.place([[1, 0]], [0])
    found = [read([text[at : at + 4]], cache, [4]) for at in range(0, 20, 4)]
    assert read.how.startswith("native")
    assert "torch for 4 of 5 steps: a text beyond the window" in read.how
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found), model([text])[0], atol=1e-4, rtol=1e-4)


def test_caches_of_both_kinds_in_turn() -> None:
    model = tiny()
    read, paged, plain = natively(model), model.new_paged_cache(2), model.new_cache()
    paged.place([[1]], [0])
    for token in (4, 9, 2):
        equal(read([[token]], paged)[0], read([[token]], plain)[0])
    assert isinstance(paged, PagedCache)
