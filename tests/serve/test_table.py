"""A sequence's pages: what it begins with, what it writes to, what it leaves."""

import pytest

from qkv.serve import table
from qkv.serve.pages import Inconsistent, Pages
from qkv.serve.sequence import Sequence


def read(pages: Pages, sequence: Sequence, count: int) -> list[tuple[int, int]]:
    """Have it read so many tokens; the copies that it needs before."""
    copies = table.extend(pages, sequence, count)
    table.advance(pages, sequence, count)
    return copies


def begun(pages: Pages, prompt: list[int], **more: object) -> Sequence:
    sequence = Sequence(0, prompt, limit=8, **more)  # type: ignore[arg-type]
    assert table.begin(pages, sequence, pages.free)
    return sequence


def test_pages_are_taken_as_tokens_come() -> None:
    pages = Pages(8, 4)
    one = begun(pages, list(range(10)))
    assert table.most(pages, one) == 5
    held, soon = [], []
    for count in (3, 1, 4, 2, 7):
        assert table.missing(pages, one, count) == pages.pages_for(one.read + count) - len(one.pages)
        read(pages, one, count)
        held.append(len(one.pages))
        soon.append(table.soon(pages, one))
        one.ids += [0] * (one.read == 10) * 7  # its answer, but for the last
    assert held == [1, 1, 2, 3, 5]
    assert soon == [3, 3, 2, 1, 0], "with a page to go on with, as long as there may be more"
    table.check(pages, [one], False)
    table.give_up(pages, one)
    assert (pages.used, pages.cached, one.read, one.pages) == (0, 4, 0, [])


def test_the_last_token_is_read_in_any_case() -> None:
    pages, prompt = Pages(8, 4), list(range(8))
    first = begun(pages, prompt)
    read(pages, first, 8)
    again, longer = begun(pages, prompt), begun(pages, [*prompt, 8])
    assert (again.read, longer.read) == (4, 8)
    assert again.pages == first.pages[:1]
    assert longer.pages == first.pages
    assert read(pages, longer, 1) == []


def test_not_begun_without_room() -> None:
    pages, prompt = Pages(8, 4), list(range(12))
    first = begun(pages, prompt)
    read(pages, first, 12)
    table.give_up(pages, first)
    second = Sequence(1, [*prompt, 12], limit=1)
    assert not table.begin(pages, second, 0)
    assert not table.begin(pages, second, 3)  # the three that are found are free pages as long as nobody holds them
    assert (pages.used, pages.cached, second.pages) == (0, 3, [])
    assert table.begin(pages, second, 4)
    third = Sequence(2, [*prompt, 13], limit=1)
    assert table.begin(pages, third, 1), "what another holds already costs nothing"


def test_whoever_writes_first_copies() -> None:
    pages = Pages(8, 4)
    one = begun(pages, list(range(6)))
    read(pages, one, 6)
    two = Sequence(1, list(range(6)), limit=8)
    table.fork(pages, one, two)
    assert two.pages == one.pages
    assert table.slots(pages, [one, two]) == (2, 8)
    end = one.pages[1]
    assert table.missing(pages, one, 1) == 1
    assert read(pages, one, 1) == [(end, one.pages[1])]
    assert one.pages[1] != end
    two.ids += [7, 8, 9]
    assert read(pages, two, 3) == []
    assert two.pages[1] == end
    assert one.pages[0] == two.pages[0]
    table.check(pages, [one, two], False)
    assert table.slots(pages, [one, two]) == (1 + 3, 16)


def test_forked_at_a_pages_end() -> None:
    pages = Pages(8, 4)
    one = begun(pages, list(range(4)))
    read(pages, one, 4)
    two = Sequence(1, list(range(4)), limit=8)
    table.fork(pages, one, two)
    one.ids.append(7)
    two.ids.append(8)
    assert read(pages, one, 1) == read(pages, two, 1) == []
    table.check(pages, [one, two], False)


def test_a_source_has_pages_of_its_own_and_is_never_found() -> None:
    pages = Pages(8, 4)
    one = begun(pages, list(range(9)), source=(1,) * 5)
    read(pages, one, 9)
    assert (len(one.source_pages), table.most(pages, one)) == (2, 4 + 2)
    assert table.slots(pages, [one]) == (3 + 3, 5 * 4)
    two = Sequence(1, one.prompt, limit=8, source=one.source)
    table.fork(pages, one, two)
    assert table.slots(pages, [one, two]) == (3 + 3, 5 * 4)
    table.check(pages, [one, two], False)
    for sequence in (one, two):
        table.give_up(pages, sequence)
    assert (pages.used, pages.cached) == (0, 0)


def test_all_is_read_again_where_that_is_wanted_and_found_by_others() -> None:
    pages = Pages(16, 4)
    read(pages, begun(pages, list(range(9))), 9)
    one = begun(pages, list(range(9)), reuse=False)
    assert one.read == 0
    read(pages, one, 9)
    fresh = begun(pages, [7, *range(9)], reuse=False)
    read(pages, fresh, 10)
    assert begun(pages, [7, *range(9)]).read == 8


@pytest.mark.parametrize("apart", [False, True])
def test_an_answers_pages_are_found_if_its_keys_are_those_of_a_prompt(apart: bool) -> None:
    pages = Pages(32, 4)
    one = begun(pages, list(range(6)), apart=apart)
    read(pages, one, 6)
    for token in range(6, 14):
        one.append(token)
        read(pages, one, 1)
    longer = begun(pages, list(range(20)), apart=apart)
    assert longer.read == (4 if apart else 12)
    read(pages, longer, 20 - longer.read)
    table.give_up(pages, one)
    assert table.begin(pages, one, pages.free)  # preempted: what it had written it reads as it did, also where others
    assert one.read == (4 if apart else 12)  # have these tokens in a prompt


def test_the_check_names_who_has_too_much() -> None:
    pages = Pages(8, 4)
    one = begun(pages, list(range(6)), source=(1, 2))
    table.extend(pages, one, 6)
    with pytest.raises(Inconsistent, match="has 2 pages and needs 0"):
        table.check(pages, [one], False)
    table.check(pages, [one], True)
    one.read, one.room = 9, 0
    with pytest.raises(Inconsistent, match="has 2 pages and needs 3"):
        table.check(pages, [one], True)
    one.read, one.source = 6, (1,) * 5
    with pytest.raises(Inconsistent, match="1 pages for its source of 5"):
        table.check(pages, [one], False)
