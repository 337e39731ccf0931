"""Records fall to the same part each time, and those that share a value fall together."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.train import hold_out
from qkv.train.recipe import Data, HoldOut
from qkv.train.records import Bad, part
from tests.train.test_records import lines, parts

PARTS = ("train", "valid", "test")
BOTH = HoldOut(valid=0.3, test=0.3, by=("a", "b"))


def fall(held, records):
    """Each record's part."""
    where = hold_out.falls(held, lambda: ((one, one) for one in records))
    return [where(one, one) for one in records]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40), st.randoms(use_true_random=False))
def test_no_value_of_two_parts(pairs, chance) -> None:
    records = [{"a": str(a), "b": str(b)} for a, b in pairs]
    fallen = fall(BOTH, records)
    for field in "ab":
        of = {which: {r[field] for r, p in zip(records, fallen, strict=True) if p == which} for which in PARTS}
        assert sum(map(len, of.values())) == len(set().union(*of.values()))
    order = chance.sample(range(len(records)), len(records))
    assert fall(BOTH, [records[i] for i in order]) == [fallen[i] for i in order]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=30))
def test_groups_are_connected_components(pairs) -> None:
    """Against components found by going along edges; no two of them are joined without need."""
    groups = hold_out._Groups()
    for a, b in pairs:
        groups.join([a, 100 + b])
    for a, _ in pairs:
        seen, rest = set(), {a}
        while rest:
            seen |= rest
            rest = {y for x in pairs for y in (x[0], 100 + x[1]) if {x[0], 100 + x[1]} & seen} - seen
        assert {groups.of(one) for one in seen} == {min(seen)}


def test_shares_of_groups() -> None:
    """The parts have their shares, and large groups are no likelier to be held out than small ones."""
    chance = random.Random(1)
    sizes = [chance.choice([1, 1, 1, 30]) for _ in range(3000)]
    records = [{"a": str(i), "b": f"{i}.{j}"} for i, size in enumerate(sizes) for j in range(size)]
    fallen = fall(HoldOut(valid=0.1, test=0.2, by=("a", "b")), records)
    assert [round(fallen.count(which) / len(records), 1) for which in PARTS] == [0.7, 0.1, 0.2]


def test_the_same_text_in_two_fields_is_two_values() -> None:
    groups = [hold_out._values(("a", "b"), one, one) for one in ({"a": "x", "b": "y"}, {"a": "y", "b": "x"})]
    assert len({value for group in groups for value in group}) == 4


def test_one_field_in_a_list_is_that_field() -> None:
    records = [{"a": str(i), "b": "same"} for i in range(50)]
    one, listed = (HoldOut(valid=0.2, test=0.2, by=by) for by in ("a", ("a",)))
    assert fall(one, records) == fall(listed, records)
    assert len(set(fall(BOTH, records))) == 1


def test_groups_stay_what_they_are() -> None:
    """The hash is part of what a recipe says: another one would move test records into training."""
    fallen = fall(BOTH, [{"a": str(i), "b": f"b{i // 2}"} for i in range(20)])
    assert [[i for i, which in enumerate(fallen) if which == held_out] for held_out in ("valid", "test")] == [
        [14, 15, 18, 19],
        [4, 5, 8, 9],
    ]


def test_a_chain_is_one_group() -> None:
    records = [{"a": str(i // 2), "b": str((i + 1) // 4)} for i in range(40)]
    assert len(set(fall(BOTH, records))) == 1


def test_of_files(tmp_path) -> None:
    records = [{"a": f"{i}", "b": f"{i // 3}"} for i in range(90)]
    found = parts(tmp_path, records, BOTH)
    assert sorted(int(r["a"]) for which in PARTS for r in found[which]) == list(range(90))
    assert all(found[which] for which in PARTS)
    assert not {r["b"] for r in found["train"]} & {r["b"] for r in found["test"]}


def test_a_bad_record_is_told_once_and_joins_nothing(tmp_path) -> None:
    lines(tmp_path / "r.jsonl", [{"a": "1", "b": "1"}, {"a": "2"}, {"b": "3"}, {"a": "4", "b": "4"}])
    told: list[str] = []
    data = Data(train="r.jsonl", hold_out=HoldOut(valid=1e-9, by=("a", "b")))
    found = list(part(data, "train", tmp_path, ("a",), Bad(2, told.append), ("b",)))
    assert [one.record["a"] for one in found] == ["1", "4"]
    assert ["r.jsonl:2: data.hold_out.by is 'b'" in told[0], "r.jsonl:3: field 'a'" in told[1]] == [True, True]
    with pytest.raises(InputError, match=r"r.jsonl:2: data.hold_out.by is 'b', which the record doesn't have"):
        list(part(data, "train", tmp_path, ("a",), Bad(), ("b",)))
