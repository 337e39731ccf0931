"""The table of families."""

from qkv.families.family import find, names
from qkv.families.summary import WORDS, table


def test_a_row_for_each_family_and_a_column_for_each_thing() -> None:
    head, rule, *rows = table().splitlines()
    assert [row.split("`")[1] for row in rows] == list(names())
    assert {row.count("|") for row in (head, rule, *rows)} == {9}


def test_what_the_table_says_is_so() -> None:
    rows = {row.split("`")[1]: row for row in table().splitlines()[2:]}
    assert "| decoder |" in rows["gpt2"]
    assert "Learned" in rows["gpt2"]
    assert "| encoder |" in rows["bert"]
    assert "| encoder + decoder |" in rows["t5"]
    assert "RelativeBias" in rows["t5"]
    for name in names():
        for architecture in find(name).architectures:
            assert WORDS[architecture.kind] in rows[name]
