"""The index of prefixes: a hash finds, equality decides."""

import pytest

from qkv.serve.prefix import PrefixIndex, digest

DIGESTS = {"blake2b": digest, "one for all": lambda content: b"", "few": lambda content: content[-8:-7]}


def test_a_page_is_found_behind_its_parent_only() -> None:
    index = PrefixIndex()
    first = index.add(5, index.root, (1, 2), b"")
    second = index.add(6, first, (3, 4), b"")
    assert index.behind(index.root, (1, 2), b"") is first
    assert index.behind(first, (3, 4), b"") is second
    assert index.behind(index.root, (3, 4), b"") is None
    assert index.behind(first, (1, 2), b"") is None
    assert (index.of(5), index.of(6), index.of(7), len(index)) == (first, second, None, 2)


def test_salts_part_what_is_the_same() -> None:
    index = PrefixIndex()
    ours, theirs = index.add(1, index.root, (1, 2), b"ours"), index.add(2, index.root, (1, 2), b"theirs")
    assert index.behind(index.root, (1, 2), b"ours") is ours
    assert index.behind(index.root, (1, 2), b"theirs") is theirs
    assert index.behind(index.root, (1, 2), b"") is None


def test_a_salt_does_not_run_into_the_tokens() -> None:
    """However the bytes of a key are divided among salt and tokens."""
    keys: list[bytes] = []
    index = PrefixIndex(lambda content: keys.append(content) or content)
    token = int.from_bytes(b"saltsalt", "little")
    for salt, tokens in ((b"saltsalt", (1,)), (b"", (token, 1)), (b"8:", (1,)), (b"", (1,))):
        index.behind(index.root, tokens, salt)
    assert len(set(keys)) == 4


def test_what_is_known_stays_where_it_is() -> None:
    index = PrefixIndex()
    first = index.add(1, index.root, (1, 2), b"")
    assert index.add(2, index.root, (1, 2), b"") is first
    assert (first.page, index.of(2)) == (1, None)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_forged_hash_gives_nothing_away(name: str) -> None:
    """Whatever collides, nothing is found that isn't the same: also behind a page whose own hash was taken."""
    index = PrefixIndex(DIGESTS[name])
    mine = index.add(1, index.root, (1, 2), b"")
    other = index.add(2, index.root, (7, 2), b"")
    behind = index.add(3, other, (3, 4), b"")
    assert index.behind(index.root, (1, 2), b"") is mine
    assert index.behind(mine, (3, 4), b"") is None
    assert index.behind(mine, (1, 2), b"") is None
    assert behind.known == other.known == (name == "blake2b")
    assert index.behind(index.root, (1, 2), b"salt") is None


def test_forgotten_with_all_that_stands_behind() -> None:
    index = PrefixIndex()
    first = index.add(1, index.root, (1,), b"")
    second = index.add(2, first, (2,), b"")
    index.add(3, second, (3,), b"")
    index.add(4, first, (4,), b"")
    kept = index.add(9, index.root, (9,), b"")
    pages = index.forget(first)
    assert pages[0] == 1
    assert sorted(pages) == [1, 2, 3, 4]
    assert list(index) == [kept]
    assert not first.known
    assert not second.known
    assert index.behind(index.root, (1,), b"") is None


def test_nothing_is_known_behind_what_is_forgotten() -> None:
    """Even after the same tokens have come back: they have another page then, and another Prefix."""
    index = PrefixIndex()
    old = index.add(1, index.root, (1,), b"")
    index.forget(old)
    new = index.add(2, index.root, (1,), b"")
    assert not index.add(3, old, (2,), b"").known
    assert index.behind(new, (2,), b"") is None
    assert index.add(4, new, (2,), b"").known
