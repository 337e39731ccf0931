"""Pages: never lost, never free twice, found only by what they hold."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qkv.errors import InputError
from qkv.serve.pages import Inconsistent, NoPages, Pages
from qkv.serve.prefix import Prefix, digest


def test_taken_and_released() -> None:
    pages = Pages(4, 2)
    mine = pages.take(3)
    assert len(set(mine)) == 3
    assert (pages.free, pages.used, pages.cached) == (1, 3, 0)
    pages.share(mine[:1])
    pages.release(mine)
    assert (pages.free, pages.used) == (3, 1)
    assert pages.writable(mine[0])
    pages.release(mine[:1])
    pages.check([])


def test_too_many_are_asked_for() -> None:
    pages = Pages(4)
    pages.take(2)
    with pytest.raises(NoPages, match="3 pages are asked for, 2 of 4 are free"):
        pages.take(3)
    assert pages.free == 2


def test_no_pages_at_all() -> None:
    with pytest.raises(InputError, match="0 pages of 16 tokens"):
        Pages(0)
    with pytest.raises(InputError, match="larger cache"):
        Pages(4, 0)


def test_a_double_free_changes_nothing() -> None:
    pages = Pages(4)
    kept, gone = pages.take(2)
    pages.release([gone])
    for twice in ([kept, gone], [kept, kept]):
        with pytest.raises(Inconsistent, match=f"page {twice[1]} is released"):
            pages.release(twice)
    assert pages.holders[kept] == 1
    pages.check([kept])


def test_a_page_without_content_is_not_shared() -> None:
    with pytest.raises(Inconsistent, match="nothing is known"):
        Pages(4).share([0])


def test_found_while_used_and_after() -> None:
    pages = Pages(4, 2)
    table = pages.take(2)
    first = pages.remember(table[0], pages.root, (1, 2), b"")
    pages.remember(table[1], first, (3, 4), b"")
    assert not pages.writable(table[0])
    assert pages.find([1, 2, 3, 4, 5], b"") == table
    assert pages.find([1, 2, 3], b"") == table[:1]
    assert pages.find([1], b"") == []
    assert pages.find([1, 2, 3, 4], b"salt") == []
    pages.check([*table, *table, table[0]])
    for held in (table, table, table[:1]):
        pages.release(held)
    assert (pages.free, pages.cached, pages.used) == (4, 2, 0)
    assert pages.find([1, 2, 3, 4], b"") == table
    assert (pages.free, pages.cached, pages.used) == (2, 0, 2)
    assert pages.prefix_of(table[0]) is first


def test_the_longest_unused_goes_first_and_the_end_before_the_beginning() -> None:
    pages = Pages(4, 1)
    old, young = pages.take(2), pages.take(2)
    for table, token in ((old, 1), (young, 2)):
        first = pages.remember(table[0], pages.root, (token,), b"")
        pages.remember(table[1], first, (token,), b"")
    pages.release(young)
    pages.release(old)
    pages.release(pages.find([2], b""))  # used again: its end is now the oldest, then the other's
    assert [*pages.take(1), *pages.take(1)] == [young[1], old[1]]
    pages.release(pages.find([1, 1], b""))  # its beginning is there still
    assert [*pages.take(1), *pages.take(1)] == [young[0], old[0]]


def test_what_is_known_behind_a_page_goes_with_it() -> None:
    """Two read the same at the same time, so the second's first page is its own and its next stands behind the other's:
    when that one is taken, the second's next page is held, and no longer found."""
    pages = Pages(3, 1)
    [a] = pages.take(1)
    b = pages.take(2)
    first = pages.remember(a, pages.root, (1,), b"")
    assert pages.remember(b[0], pages.root, (1,), b"") is first
    pages.remember(b[1], first, (2,), b"")
    pages.release([a])
    assert pages.take(1) == [a]
    assert pages.find([1, 2], b"") == []
    pages.check([a, *b])
    pages.release(b)
    assert pages.cached == 0


@pytest.mark.parametrize(("tokens", "held"), [((1,), True), ((1, 2, 3), True), ((1, 2), False)])
def test_only_full_pages_that_are_held_are_remembered(tokens: tuple[int, ...], held: bool) -> None:
    pages = Pages(4, 2)
    [page] = pages.take(1)
    if not held:
        pages.release([page])
    with pytest.raises(Inconsistent, match="can't be remembered"):
        pages.remember(page, pages.root, tokens, b"")


def test_nothing_is_known_of_an_empty_page() -> None:
    with pytest.raises(Inconsistent, match="nothing is known of page 3"):
        Pages(4).prefix_of(3)


def test_the_check_finds_what_is_wrong() -> None:
    for harm, said in (
        (lambda pages: pages._empty.append(pages._empty[0]), "free twice"),
        (lambda pages: pages._empty.append(0), "free and in use"),
        (lambda pages: pages._empty.pop(), "lost"),
        (lambda pages: pages.holders.__setitem__(0, 2), "other holders"),
        (lambda pages: pages.holders.__setitem__(0, -1), "less than no holder"),
        (lambda pages: pages._index.root.children.clear(), "behind nothing"),
        (lambda pages: setattr(pages, "used", 3), "were counted"),
        (lambda pages: pages._cached.__setitem__(pages._empty.pop(), None), "cached and not known"),
    ):
        pages = Pages(4, 1)
        assert pages.take(1) == [0]
        pages.remember(0, pages.root, (1,), b"")
        pages.check([0])
        harm(pages)
        with pytest.raises(Inconsistent, match=said):
            pages.check([0])


class Holders(RuleBasedStateMachine):
    """Some who take, share, remember, find and release, beside a plain count of who holds what."""

    @initialize(
        count=st.integers(1, 12), size=st.integers(1, 3), forged=st.sampled_from([digest, lambda content: b"same"])
    )
    def start(self, count: int, size: int, forged: object) -> None:
        self.pages = Pages(count, size, digest=forged)
        self.held: list[tuple[list[int], list[int], bytes, Prefix]] = []  # pages, tokens, salt, last prefix

    def counted(self) -> Counter[int]:
        return Counter(page for pages, *_ in self.held for page in pages)

    @rule(tokens=st.lists(st.integers(0, 1), max_size=16), salt=st.sampled_from([b"", b"a"]))
    def begin(self, tokens: list[int], salt: bytes) -> None:
        """As a sequence does: find what is there, take the rest, remember what is full."""
        size = self.pages.size
        found = self.pages.find(tokens, salt)
        for at, page in enumerate(found):
            prefix = self.pages.prefix_of(page)
            assert (prefix.tokens, prefix.salt) == (tuple(tokens[at * size : (at + 1) * size]), salt)
            assert prefix.parent is (self.pages.prefix_of(found[at - 1]) if at else self.pages.root)
        needed = -(-len(tokens) // size) - len(found)
        if needed > self.pages.free:
            with pytest.raises(NoPages):
                self.pages.take(needed)
            self.pages.release(found)
            return
        table = found + self.pages.take(needed)
        prefix = self.pages.prefix_of(found[-1]) if found else self.pages.root
        for at in range(len(found), len(tokens) // size):
            prefix = self.pages.remember(table[at], prefix, tuple(tokens[at * size : (at + 1) * size]), salt)
        self.held.append((table, tokens, salt, prefix))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        pages, *rest = data.draw(st.sampled_from(self.held))
        self.pages.share(pages)
        self.held.append((pages, *rest))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        self.pages.release(self.held.pop(at)[0])

    @invariant()
    def in_order(self) -> None:
        if not hasattr(self, "pages"):
            return
        counted = self.counted()
        self.pages.check(counted.elements())
        assert self.pages.used == len(counted)
        assert self.pages.free + self.pages.used == self.pages.count
        assert 0 <= self.pages.cached <= self.pages.free
        for page in range(self.pages.count):
            assert self.pages.holders[page] == counted[page]


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
