"""Where a checkpoint doesn't fit, in words."""

from qkv.families.llama import FAMILY
from qkv.load.difference import difference


def test_each_kind_of_difference_has_its_line() -> None:
    said = difference(
        "here", ["a.weight", "lm_head.weight"], ["b"], [("w", (2, 3), (3, 2)), ("v", (4,), (5,))], {"b": (1,)}, FAMILY
    )
    assert said.splitlines() == [
        "here doesn't fit a llama model of its config:",
        "  missing (2): a.weight, lm_head.weight",
        "  unexpected (1): b",
        "  misshapen: w is [2, 3], should be [3, 2] (transposed?)",
        "  misshapen: v is [4], should be [5]",
    ]


def test_many_are_counted() -> None:
    many = [(f"w{i}", (1,), (2,)) for i in range(11)]
    lines = difference("here", [], [], many, {}, FAMILY).splitlines()
    assert len(lines) == 10
    assert lines[-1] == "  … and 3 more misshapen"


def test_a_missing_head_has_a_way_out() -> None:
    assert "ask for a new one, to be trained, by new_head" in difference("x", ["score.weight"], [], [], {}, FAMILY)
    assert "all that the model needs is there" in difference("x", [], ["lora"], [], {}, FAMILY)
