"""The pages of a sequence: which it begins with, takes, shares, copies before it writes, and gives up.

A sequence has no more pages than its tokens need, so all that is wasted is the end of its last page. Pages that others
have too are full, but for the last one of sequences that were forked: who writes to that one copies it first.
"""

from collections.abc import Iterable
from itertools import chain

from qkv.serve.pages import Inconsistent, Pages
from qkv.serve.sequence import Sequence


def most(pages: Pages, sequence: Sequence) -> int:
    """Pages that it may come to need."""
    return pages.pages_for(sequence.longest) + pages.pages_for(len(sequence.source))


def soon(pages: Pages, sequence: Sequence) -> int:
    """Pages that it will take for the tokens it has now, and one more to go on with, unless it needs no more."""
    wanted = min(pages.pages_for(len(sequence.ids)) + 1, pages.pages_for(sequence.longest))
    return max(0, wanted - len(sequence.pages))


def begin(pages: Pages, sequence: Sequence, room: int) -> bool:
    """Let it have the pages that the index knows of its beginning, and those for its source. False: `room` free pages
    would not do for all that it has yet to read.

    Its last token is read in any case: a row must be there to sample from."""
    if room < 1:
        return False
    free, source = pages.free, pages.pages_for(len(sequence.source))
    known = min(sequence.shared, len(sequence.ids) - 1)
    found = pages.find(sequence.ids[:known], sequence.salt) if sequence.reuse else []
    idle = free - pages.free  # of those found, which nobody held
    if pages.pages_for(len(sequence.ids)) - len(found) + source + idle > room:
        pages.release(found)
        return False
    sequence.pages, sequence.read = found, len(found) * pages.size
    sequence.source_pages = pages.take(source)
    sequence.prefix, sequence.remembered = pages.prefix_of(found[-1]) if found else pages.root, len(found)
    return True


def missing(pages: Pages, sequence: Sequence, count: int) -> int:
    """Pages to take before it can read `count` tokens."""
    return pages.pages_for(sequence.read + count) - len(sequence.pages) + _shares_its_end(pages, sequence)


def extend(pages: Pages, sequence: Sequence, count: int) -> list[tuple[int, int]]:
    """Take what is missing for `count` tokens: (from, to), the page to copy before it writes, if there is one."""
    table, shared = sequence.pages, _shares_its_end(pages, sequence)
    new, copies = pages.take(missing(pages, sequence, count)), list[tuple[int, int]]()
    if shared:
        at = sequence.read // pages.size
        copies.append((table[at], new[0]))
        pages.release([table[at]])
        table[at] = new.pop(0)
    table += new
    sequence.room = len(table) * pages.size - sequence.read
    return copies


def advance(pages: Pages, sequence: Sequence, count: int) -> None:
    """It has read `count` tokens: tell the index of the pages that have become full. A decoder's keys depend on its
    source too, so not of those that have one."""
    sequence.read += count
    sequence.room -= count
    if (count == 1 and sequence.room) or sequence.source:
        return
    size, prefix = pages.size, sequence.prefix or pages.root
    full = min(sequence.read, sequence.shared) // size
    for at in range(sequence.remembered, full):
        tokens = tuple(sequence.ids[at * size : (at + 1) * size])
        prefix = pages.remember(sequence.pages[at], prefix, tokens, sequence.salt)
    sequence.prefix, sequence.remembered = prefix, full


def fork(pages: Pages, sequence: Sequence, child: Sequence) -> None:
    """All that one has the other has too."""
    pages.share(sequence.pages)
    pages.share(sequence.source_pages)
    child.pages, child.source_pages = list(sequence.pages), list(sequence.source_pages)
    child.read, child.prefix, child.remembered = sequence.read, sequence.prefix, sequence.remembered
    child.room = sequence.room = 0


def give_up(pages: Pages, sequence: Sequence) -> None:
    """It has no pages, and has read nothing."""
    pages.release(sequence.pages)
    pages.release(sequence.source_pages)
    sequence.pages, sequence.source_pages = [], []
    sequence.read, sequence.room, sequence.prefix, sequence.remembered = 0, 0, None, 0


def slots(pages: Pages, sequences: Iterable[Sequence]) -> tuple[int, int]:
    """Slots of used pages without a token, and all of them. Forks that share their last page waste it once."""
    size, empty = pages.size, dict[int, int]()
    for one in sequences:
        if one.pages:
            last, spare = one.pages[-1], len(one.pages) * size - one.read
            if last not in empty or spare < empty[last]:
                empty[last] = spare
        if one.source_pages:
            empty[one.source_pages[-1]] = len(one.source_pages) * size - len(one.source)
    return sum(empty.values()), pages.used * size


def check(pages: Pages, sequences: Iterable[Sequence], stepping: bool) -> None:
    """Recount the pages of those that have some: all there are. `stepping`: in a step they have those for its tokens.
    Inconsistent: something is wrong."""
    sequences = list(sequences)
    pages.check(chain.from_iterable(chain(one.pages, one.source_pages) for one in sequences))
    for one in sequences:
        has, needs = len(one.pages), pages.pages_for(one.read)
        if has < needs or (has > needs and not stepping):
            raise Inconsistent(f"{one} has {has} pages and needs {needs}")
        if one.room < 0 or (one.room and not pages.writable(one.pages[-1])):
            raise Inconsistent(f"{one} thinks it may read {one.room} tokens more")
        if len(one.source_pages) != pages.pages_for(len(one.source)):
            raise Inconsistent(f"{one} has {len(one.source_pages)} pages for its source of {len(one.source)} tokens")


def _shares_its_end(pages: Pages, sequence: Sequence) -> bool:
    """Is the page that it writes to next one that others read?"""
    at, inside = divmod(sequence.read, pages.size)
    return inside > 0 and pages.holders[sequence.pages[at]] > 1
