"""The queue: in turn over tenants by what was read for them, in order of arrival within one."""

from qkv.serve import fair_queue
from qkv.serve.fair_queue import FairQueue
from qkv.serve.sequence import Sequence


def sequence(id: int, tenant: str = "", prompt: int = 10) -> Sequence:
    return Sequence(id, [0] * prompt, limit=5, tenant=tenant)


def served(queue: FairQueue, count: int) -> list[int]:
    """The ids of the next so many, each paid for when its turn comes."""
    ids = []
    for _ in range(count):
        one = next(queue.in_turn())
        queue.admit(one)
        queue.charge(one, len(one.ids))
        ids.append(one.id)
    return ids


def test_one_tenant_in_order() -> None:
    queue = FairQueue()
    for id in range(5):
        queue.add(sequence(id, prompt=9 - id))
    assert [one.id for one in queue.in_turn()] == [0, 1, 2, 3, 4]
    assert served(queue, 5) == [0, 1, 2, 3, 4]
    assert len(queue) == 0


def test_two_tenants_in_turn_by_tokens() -> None:
    queue = FairQueue()
    for id in range(4):
        queue.add(sequence(id, "long", 20))
    for id in range(10, 18):
        queue.add(sequence(id, "short", 10))
    in_turn = [one.id for one in queue.in_turn()]
    assert in_turn == [0, 10, 11, 1, 12, 13, 2, 14, 15, 3, 16, 17]
    assert served(queue, 12) == in_turn


def test_a_source_is_paid_for_too() -> None:
    queue = FairQueue()
    for id in range(3):
        queue.add(Sequence(id, [0], limit=5, tenant="long", source=[0] * 19))
    for id in range(10, 16):
        queue.add(sequence(id, "short", 10))
    in_turn = [one.id for one in queue.in_turn()]
    assert in_turn == [0, 10, 11, 1, 12, 13, 2, 14, 15]
    assert served(queue, 9) == in_turn


def test_a_newcomer_waits_for_nobodys_backlog() -> None:
    queue = FairQueue()
    for id in range(20):
        queue.add(sequence(id, "busy"))
    served(queue, 10)
    queue.add(sequence(100, "new"))
    assert 100 in served(queue, 2)


def test_nobody_saves_up_turns() -> None:
    queue = FairQueue()
    queue.add(sequence(0, "seldom"))
    served(queue, 1)
    for id in range(1, 11):
        queue.add(sequence(id, "busy"))
    served(queue, 8)
    for id in range(20, 24):
        queue.add(sequence(id, "seldom"))
    assert [one.id for one in queue.in_turn()][:4] != [20, 21, 22, 23]
    assert queue.served("seldom") >= 70


def test_each_token_is_paid_once() -> None:
    queue, one = FairQueue(), sequence(0, "a")
    queue.add(one)
    queue.admit(one)
    queue.charge(one, 10)
    queue.put_back(one)  # it lost its pages, and reads them all again
    queue.admit(one)
    queue.charge(one, 4)
    queue.charge(one, 12)
    assert queue.served("a") == 12


def test_who_lost_its_pages_comes_first() -> None:
    queue = FairQueue()
    for id in range(3):
        queue.add(sequence(id))
    back = [sequence(id) for id in range(10, 13)]
    for order, one in enumerate(back):
        one.order = order
    for one in (back[1], back[0], back[2]):
        queue.put_back(one)
    assert [one.id for one in queue.in_turn()] == [10, 11, 12, 0, 1, 2]


def test_who_leaves_is_gone() -> None:
    queue, gone = FairQueue(), sequence(1)
    for one in (sequence(0), gone, sequence(2)):
        queue.add(one)
    queue.remove(gone)
    assert [one.id for one in queue] == [0, 2]
    assert len(queue) == 2


def test_tenants_are_forgotten_when_they_are_many() -> None:
    queue = FairQueue()
    for id in range(3 * fair_queue.REMEMBERED):
        one = sequence(id, f"tenant {id}")
        queue.add(one)
        queue.remove(one)
    assert len(queue._tenants) <= fair_queue.REMEMBERED
