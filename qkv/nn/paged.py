"""Keys and values in pages (PagedAttention, Kwon et al. 2023, arXiv 2309.06180): sequences of any lengths in one
memory, which may share what they have in common.

Each step says which pages its sequences have. Which pages are free, and who shares one, is the caller's to know.

T  new tokens in the stream    B  sequences    P  pages of the longest    G  key/value heads    D  head_dim    K  keys
S  tokens of encoded sequences
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.nn.attend import Keys
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache, Kept, Storage
from qkv.nn.fixed import Both, Memory, Source

if TYPE_CHECKING:
    from qkv.nn.stack import Transformer

RUN = 16  # keys that lie side by side, for the native library


class Tables:
    """Which pages some sequences have, and how many tokens of each are there: position p of one is in slot p mod size
    of its page p // size. InputError: no sequence, one without a page, or a page or a slot that isn't there."""

    def __init__(self, pool: "Pool", rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        if not rows or not all(rows):
            raise InputError("a step has at least one sequence, and each needs at least one page")
        self.pool, self.rows, self.lengths = pool, [list(row) for row in rows], list(lengths)
        self.fit([0] * len(rows), lengths)
        longest, numbers = max(map(len, rows)), array("q")
        for row in self.rows:
            numbers.extend(row)
            numbers.frombytes(bytes(8 * (longest - len(row))))
        self.table = torch.frombuffer(numbers, dtype=torch.int64).view(len(rows), longest)  # [B, P], on the CPU
        low, high = (int(x) for x in self.table.aminmax())
        if low < 0 or high >= pool.count:
            raise InputError(f"there is no page {low if low < 0 else high} in a cache of {pool.count}")

    def fit(self, starts: Sequence[int], lengths: Sequence[int]) -> None:
        """InputError: so many tokens are of other sequences, or are beyond the pages of one."""
        if len(lengths) != len(self.rows):
            raise InputError(f"pages are placed for {len(self.rows)} sequences, not for {len(lengths)}: `place` these")
        for i, (row, start, n) in enumerate(zip(self.rows, starts, lengths, strict=True)):
            if not 0 <= start <= start + n <= len(row) * self.pool.size:
                has = f"sequence {i} has {len(row)} pages of {self.pool.size} tokens"
                raise InputError(f"{has}, which don't hold {start} and {n} more: `place` it with more pages")

    def select(self, rows: Sequence[int]) -> "Tables":
        """Those of these sequences, in this order."""
        return Tables(self.pool, [self.rows[r] for r in rows], [self.lengths[r] for r in rows])

    def alone(self, starts: Sequence[int], lengths: Sequence[int], others: "Tables | None" = None) -> None:
        """InputError: a page that the next tokens go to stands in a second place of these tables, or in the others."""
        written, size = set[int](), self.pool.size
        for row, start, n in zip(self.rows, starts, lengths, strict=True):
            written.update(row[start // size : -(-(start + n) // size)])
        everything = chain.from_iterable(self.rows + (others.rows if others is not None else []))
        if sum(map(written.__contains__, everything)) != len(written):
            raise InputError("a page that new tokens go to is shared: `copy` it, and `place` the copy")

    def places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Page and slot of each new token [T]."""
        self.fit(batch.starts, batch.lengths)
        at, size = batch.positions, self.pool.size
        return self.table.to(at.device)[batch.rows, at // size], at % size

    def look(self, x: Tensor, ends: Sequence[int], batch: Batch, name: str) -> Tensor:
        """The first `ends` keys of each sequence [B, G, K, D], out of pages [pages, G, size, D]. `name`: of these
        tables, for the layers of a batch."""
        end, first = max(ends), -(-max(ends) // self.pool.size)
        pages = batch.once((name, "table"), lambda: self.table[:, :first].to(x.device))
        seen = x.transpose(0, 1)[:, pages].transpose(0, 1).flatten(2, 3)[:, :, :end]
        if len(set(ends)) == 1:
            return seen
        # Behind a sequence's end is what others have left: a weight of zero makes no zero of a NaN.
        gone = batch.once((name, "gone"), lambda: (_positions(ends, x.device) < 0)[:, None, :, None])
        return seen.masked_fill(gone, 0)

    def keys(
        self, memory: tuple[Tensor, Tensor], ends: Sequence[int], batch: Batch, name: str, dtype: torch.dtype
    ) -> Keys:
        """What a step may look at, as numbers of this dtype."""
        k, v = (self.look(x, ends, batch, name).to(dtype) for x in memory)
        return Keys(k, v, lambda: batch.once(name, lambda: _positions(ends, k.device)), name, len(set(ends)) == 1)


def _positions(ends: Sequence[int], device: torch.device) -> Tensor:
    """[B or 1, K]: of each slot of a sequence; −1 behind its end."""
    slots = torch.arange(max(ends), device=device)[None]
    if len(set(ends)) == 1:
        return slots
    return torch.where(slots < torch.tensor(list(ends), device=device)[:, None], slots, -1)


class Pool:
    """`count` pages of `size` tokens in each layer, and those of the next step's sequences.

    InputError: no page, or a size that is no multiple of 16."""

    def __init__(self, count: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        if count < 1 or size < 1 or size % RUN:
            raise InputError(
                f"a paged cache has one page or more, of a multiple of {RUN} tokens, not {count} of {size}"
            )
        self.count, self.size, self.dtype, self.device = count, size, dtype, device
        self.tables: tuple[Tables | None, Tables | None] = None, None  # of the texts, of what an encoder has read
        self.memory: list[Tensor] = []

    def more(self, width: int) -> tuple[Tensor, Tensor]:
        """Memory for the keys and for the values of another layer [count, size · width]: `width` numbers a token."""
        k, v = (torch.zeros(self.count, self.size * width, dtype=self.dtype, device=self.device) for _ in range(2))
        self.memory += [k, v]
        return k, v

    @property
    def own(self) -> Tables:
        """The pages of the texts. InputError: none are placed."""
        return _placed(self.tables[0])

    @property
    def sources(self) -> Tables:
        """The pages of what an encoder has read. InputError: none are placed."""
        return _placed(self.tables[1])


def _placed(tables: Tables | None) -> Tables:
    if tables is None:
        raise InputError("no sequence has pages yet: `place` those of the next step")
    return tables


class _InPages(Kept):
    """Keys and values [pages, heads, size, width] in a layer's memory."""

    def __init__(self, pool: Pool, memory: tuple[Tensor, Tensor], heads: int, width: int) -> None:
        self.pool, self.memory = pool, memory
        shape, used = (heads, pool.size, width), heads * pool.size * width  # a page may have more room than that
        self.k, self.v = (x[:, :used].view(pool.count, *shape) for x in memory)

    def write(self, k: Tensor, v: Tensor, places: tuple[Tensor, Tensor]) -> None:
        """k and v [T, G, D] to their pages and slots."""
        pages, slots = places
        self.k[pages, :, slots], self.v[pages, :, slots] = k.to(self.k.dtype), v.to(self.v.dtype)

    def select(self, rows: Sequence[int]) -> None:
        """The tables are the cache's."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """A slot behind a sequence's end is never seen."""

    def reserve(self, tokens: int) -> None:
        """All are undoable."""

    def keep_in(self, dtype: torch.dtype | None) -> None:
        """The pages are of the dtype that they were made with."""

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.memory)


class Paged(_InPages, Storage):
    """One layer's keys and values. `at_least`: the numbers a token that a page must have room for, where a
    `PagedSource` has pages of the same memory."""

    def __init__(self, pool: Pool, heads: int, width: int, at_least: int = 0) -> None:
        super().__init__(pool, pool.more(max(heads * width, at_least)), heads, width)

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        tables = self.pool.own
        self.write(k, v, batch.once("places in pages", lambda: tables.places(batch)))
        keys = tables.keys((self.k, self.v), batch.ends, batch, "paged", k.dtype)
        keys.in_order = batch.aligned
        return keys

    def room(self, like: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """All pages: which are whose, the tables say."""
        return self.k, self.v


class PagedSource(_InPages, Source):
    """What cross-attention looks at, in pages of the memory of the layer's own keys. `project`: an encoder's states
    [S, C] to keys and values [S, G, D]."""

    def __init__(self, own: Paged, heads: int, width: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__(own.pool, own.memory, heads, width)
        self.project, self.computed = project, self.k.dtype

    def fill(self, memory: Memory, places: tuple[Tensor, Tensor]) -> None:
        """Keep the keys and values of these states at these places."""
        k, v = self.project(memory.states)
        self.write(k, v, places)
        self.computed = k.dtype

    def look(self, batch: Batch) -> Keys:
        tables = self.pool.sources
        tables.fit(tables.lengths, [0] * len(batch.lengths))
        return tables.keys((self.k, self.v), tables.lengths, batch, "paged sources", self.computed)

    @property
    def nbytes(self) -> int:
        """They lie in the pages of the layer's own."""
        return 0


class PagedCache(Cache):
    """A cache of pages. Before a step `place` says which pages its sequences have; whatever else lies in pages, of
    other sequences too, is neither seen nor changed. `lengths`: of the sequences placed last."""

    def __init__(self, layers: Sequence[Kept], pool: Pool) -> None:
        super().__init__(layers, dtype=pool.dtype)
        self.pool = pool
        sources = [layer.fixed for layer in layers if isinstance(layer, Both)]
        self.sources = [source for source in sources if isinstance(source, PagedSource)]

    def place(
        self,
        tables: Sequence[Sequence[int]],
        lengths: Sequence[int],
        source_tables: Sequence[Sequence[int]] = (),
        source_lengths: Sequence[int] = (),
    ) -> None:
        """The sequences of the next steps: in the pages `tables[b]` lie `lengths[b]` tokens of the b-th, position p in
        slot p mod size of page p // size, and the step's own go there too. Of an encoder–decoder also those that
        `remember` has filled, and how many tokens were encoded.
        InputError, and nothing has changed: numbers that don't agree, or a page or a slot that isn't there."""
        if len(source_tables) != (len(tables) if self.sources else 0):
            told = "one table of an encoder's pages for each sequence" if self.sources else "no encoder's pages"
            raise InputError(f"this model has {told}, not {len(source_tables)} for {len(tables)}")
        own = Tables(self.pool, tables, lengths)
        sources = Tables(self.pool, source_tables, source_lengths) if self.sources else None
        self.pool.tables, self.lengths = (own, sources), list(lengths)

    def starts(self, lengths: Sequence[int]) -> list[int]:
        """Where the next `lengths` tokens begin. InputError: of other sequences than were placed, beyond their pages,
        or to a page that is shared."""
        self.pool.own.fit(self.lengths, lengths)
        self.pool.own.alone(self.lengths, lengths, self.pool.tables[1])
        return self.lengths

    def tables(self, batch: Batch) -> Tensor:
        self.pool.own.fit(batch.starts, batch.lengths)
        return self.pool.own.table

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order. InputError: none, one that isn't there, or one twice, which needs pages
        of its own."""
        if len(set(rows)) != len(rows):
            raise InputError(f"{list(rows)} has a sequence twice: `copy` its last page, and `place` both")
        super().select(rows)
        own, sources = self.pool.tables
        self.pool.tables = own and own.select(rows), sources and sources.select(rows)

    @torch.no_grad()
    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Pages (from, to), in every layer, as they all were before. InputError: one that isn't there, or two copies to
        one page."""
        if not all(0 <= page < self.pool.count for pair in pairs for page in pair):
            raise InputError(f"there are pages 0 to {self.pool.count - 1} to copy, not all of {list(pairs)}")
        if len({to for _, to in pairs}) != len(pairs):
            raise InputError(f"two copies to one page: {list(pairs)}")
        if pairs:
            sources, targets = torch.tensor(list(pairs), device=self.pool.device).T
            for memory in self.pool.memory:
                memory[targets] = memory[sources]

    @torch.no_grad()
    def remember(self, memory: Memory, tables: Sequence[Sequence[int]]) -> None:
        """Fill pages, `tables[i]` for the i-th sequence that was encoded, with what cross-attention looks at, in every
        layer. InputError: no such pages, too few, shared ones; or a model without an encoder."""
        if not self.sources:
            raise InputError("this model's decoder looks at no encoder")
        starts, lengths = memory.batch.starts, memory.batch.lengths
        given = Tables(self.pool, tables, lengths)
        given.alone(starts, lengths)
        places = given.places(memory.batch)
        for source in self.sources:
            source.fill(memory, places)


def bytes_a_page(model: "Transformer", size: int = 16, dtype: torch.dtype | None = None) -> int:
    """What one page of `new_paged_cache` takes in all layers. InputError as there."""
    return model.new_paged_cache(1, size, dtype=dtype).nbytes
