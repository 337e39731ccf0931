"""The cache's memory as pages of a few tokens each, counted: who holds which, which are free, which may be found again.

Paging is vLLM's (Kwon et al., 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention"): a sequence takes a page when it needs one, so all that it can waste is the end of its last page, and
pages of the same tokens are held by several. What is in a page is not known here, only its number.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from qkv.errors import InputError, QkvError
from qkv.serve.prefix import Digest, Prefix, PrefixIndex, digest


class NoPages(QkvError):
    """Not enough free pages. Whoever asks makes others give up theirs, or waits."""


class Inconsistent(QkvError):
    """The books don't balance, or somebody broke the rules of the pages: an error of ours, never of a user."""


class Pages:
    """`count` pages of `size` tokens; a page is free if nobody holds it. free + used = count, always.

    Of the free ones `cached` still have content that `find` may give out again; they are the last to be taken, the
    one longest unused first. `holders`: how many hold each page, to be read only. `digest`: another hash, for a test.
    InputError: no page, or an empty one."""

    def __init__(self, count: int, size: int = 16, *, digest: Digest = digest) -> None:
        if count < 1 or size < 1:
            raise InputError(f"{count} pages of {size} tokens can't hold anything; ask for a larger cache")
        self.count, self.size = count, size
        self.used = 0
        self.holders = [0] * count
        self._empty = list(range(count - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._index = PrefixIndex(digest)

    @property
    def free(self) -> int:
        """Pages that can be taken, cached ones among them."""
        return len(self._empty) + len(self._cached)

    @property
    def cached(self) -> int:
        """Free pages whose content may be found again."""
        return len(self._cached)

    @property
    def root(self) -> Prefix:
        """What stands before the first page of any sequence."""
        return self._index.root

    def pages_for(self, tokens: int) -> int:
        """How many pages so many tokens fill."""
        return -(-tokens // self.size)

    def writable(self, page: int) -> bool:
        """May its one holder write to it? Nobody else reads it, now or through the index."""
        return self.holders[page] == 1 and self._index.of(page) is None

    def take(self, count: int) -> list[int]:
        """So many pages, held once each. NoPages: there are fewer, and none is taken."""
        if count > self.free:
            raise NoPages(f"{count} pages are asked for, {self.free} of {self.count} are free")
        while len(self._empty) < count:
            self._evict()
        taken = [self._empty.pop() for _ in range(count)]
        for page in taken:
            self.holders[page] = 1
        self.used += count
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each. Inconsistent: a page that has no content."""
        for page in pages:
            if not self.holders[page]:
                if page not in self._cached:
                    raise Inconsistent(f"page {page} is shared, but nobody holds it and nothing is known of it")
                del self._cached[page]
                self.used += 1
            self.holders[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each. Inconsistent, and nothing has changed: one has less holders than that.

        A table's last page is forgotten first: without those before it, it could not be found."""
        for page, times in Counter(pages).items():
            if self.holders[page] < times:
                raise Inconsistent(f"page {page} is released {times}×, and {self.holders[page]} hold it")
        for page in reversed(pages):
            self.holders[page] -= 1
            if not self.holders[page]:
                self.used -= 1
                if self._index.of(page) is None:
                    self._empty.append(page)
                else:
                    self._cached[page] = None

    def remember(self, page: int, parent: Prefix, tokens: tuple[int, ...], salt: bytes) -> Prefix:
        """Let `find` give out this full page from now on: its tokens, and the Prefix of the page before it.

        The Prefix to hand in for the next page. Inconsistent: the page isn't full, or not held."""
        if len(tokens) != self.size or not self.holders[page]:
            raise Inconsistent(f"page {page} can't be remembered with {len(tokens)} tokens of {self.size}")
        return self._index.add(page, parent, tokens, salt)

    def prefix_of(self, page: int) -> Prefix:
        """What a page that was found stands for. Inconsistent: nothing is known of it."""
        prefix = self._index.of(page)
        if prefix is None:
            raise Inconsistent(f"nothing is known of page {page}")
        return prefix

    def find(self, ids: Sequence[int], salt: bytes) -> list[int]:
        """The pages of the longest known beginning of `ids`, each shared with who asks: release them some day."""
        found, at = list[int](), self._index.root
        for start in range(0, len(ids) - self.size + 1, self.size):
            known = self._index.behind(at, tuple(ids[start : start + self.size]), salt)
            if known is None or known.page is None:
                break
            found.append(known.page)
            at = known
        self.share(found)
        return found

    def _evict(self) -> None:
        """The cached page that was longest unused is empty from now on; what was known behind it can't be found."""
        page, _ = self._cached.popitem(last=False)
        self._empty.append(page)
        for gone in self._index.forget(self.prefix_of(page))[1:]:
            if not self.holders[gone]:
                del self._cached[gone]
                self._empty.append(gone)

    def check(self, held: Iterable[int] | None = None) -> None:
        """Count everything again; `held`: all pages of all tables, once for each holder. Inconsistent names what is
        wrong."""
        empty, cached = set(self._empty), set(self._cached)
        used = {page for page, holders in enumerate(self.holders) if holders}
        _must(min(self.holders) >= 0, "a page has less than no holder")
        _must(len(empty) == len(self._empty), "a page is free twice")
        _must(not (empty & cached or empty & used or cached & used), "a page is free and in use")
        _must(len(empty) + len(cached) + len(used) == self.count, "a page is lost")
        _must(self.used == len(used), f"{len(used)} pages are used, {self.used} were counted")
        _must(self.free + self.used == self.count, "free and used pages are not all pages")
        if held is not None:
            counts = [0] * self.count
            for page in held:
                counts[page] += 1
            wrong = [page for page in range(self.count) if counts[page] != self.holders[page]]
            _must(not wrong, f"pages {wrong[:8]} have other holders than counted")
        known = {prefix.page for prefix in self._index}
        _must(len(known) == len(self._index), "a page is known twice")
        _must(cached <= known <= cached | used, "a page is known that is empty, or cached and not known")
        for prefix in self._index:
            _must(self._index.of(prefix.page or 0) is prefix, f"page {prefix.page} is known as another")
            parent = prefix.parent
            _must(parent is not None and parent.known and prefix in parent.children, "a page is known behind nothing")


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Inconsistent(f"the pages are not in order: {otherwise}")
