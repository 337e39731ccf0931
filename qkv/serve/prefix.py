"""Which page holds which tokens behind which others: how a prompt finds the keys that another has left.

A full page is known by what it holds and by all that stands before it, as a chain of hashes. A hash only finds a page;
it is taken if its tokens, its salt and the very page before it are the ones wanted, so that no collision, by chance or
made, gives one prompt another's keys. Pages of different salts never match: a salt is one user's, or one key's.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

Digest = Callable[[bytes], bytes]


def digest(content: bytes) -> bytes:
    """16 bytes that nobody knows how to find twice."""
    return blake2b(content, digest_size=16).digest()


@dataclass(eq=False, slots=True)
class Prefix:
    """A page's tokens at their place behind `parent`. `page`: where their keys are; None: nowhere any longer.

    An object and not a hash stands for what comes before: two of one hash are still two."""

    key: bytes
    parent: "Prefix | None" = field(repr=False)
    tokens: tuple[int, ...]
    salt: bytes
    page: int | None
    children: set["Prefix"] = field(default_factory=set, repr=False)

    @property
    def known(self) -> bool:
        """Can more be remembered behind it?"""
        return self.page is not None or self.parent is None


class PrefixIndex:
    """The prefixes that are known, by hash and by page. Behind one that is known all others are known too.

    `root` stands for nothing read yet; it is in no page."""

    def __init__(self, digest: Digest = digest) -> None:
        self.root = Prefix(b"", None, (), b"", None)
        self._digest = digest
        self._by_key: dict[bytes, Prefix] = {}
        self._by_page: dict[int, Prefix] = {}

    def __len__(self) -> int:
        return len(self._by_page)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._by_page.values())

    def of(self, page: int) -> Prefix | None:
        """What a page is known to hold."""
        return self._by_page.get(page)

    def behind(self, parent: Prefix, tokens: tuple[int, ...], salt: bytes) -> Prefix | None:
        """The page of these tokens right behind `parent`, if it is known."""
        return self._confirmed(self._key(parent, tokens, salt), parent, tokens, salt)

    def add(self, page: int, parent: Prefix, tokens: tuple[int, ...], salt: bytes) -> Prefix:
        """Know a page from now on. Where its content is known in another page, that one stays; and a Prefix that is
        not `known` comes back where it can't be: its parent is forgotten, or another content has its hash."""
        key = self._key(parent, tokens, salt)
        if (old := self._confirmed(key, parent, tokens, salt)) is not None:
            return old
        if key in self._by_key or not parent.known:
            return Prefix(key, parent, tokens, salt, None)
        new = Prefix(key, parent, tokens, salt, page)
        parent.children.add(new)
        self._by_key[key] = self._by_page[page] = new
        return new

    def forget(self, prefix: Prefix) -> list[int]:
        """No longer know it, nor what was known behind it: the pages, itself first."""
        if prefix.parent is not None:
            prefix.parent.children.discard(prefix)
        gone, pages = [prefix], list[int]()
        for one in gone:  # which grows
            if one.page is not None:
                pages.append(one.page)
                del self._by_key[one.key], self._by_page[one.page]
            gone += one.children
            one.page = None
            one.children.clear()
        return pages

    def _key(self, parent: Prefix, tokens: tuple[int, ...], salt: bytes) -> bytes:
        return self._digest(b"%b%d:%b%b" % (parent.key, len(salt), salt, array("q", tokens).tobytes()))

    def _confirmed(self, key: bytes, parent: Prefix, tokens: tuple[int, ...], salt: bytes) -> Prefix | None:
        found = self._by_key.get(key)
        same = found is not None and found.parent is parent and found.tokens == tokens and found.salt == salt
        return found if same else None
