"""Patterns of layers."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from qkv.families.family import find
from qkv.families.layers import pattern
from qkv.spec import Stack

PLAIN = find("llama").spec(find("llama").tiny).decoder.blocks[0]
BLOCKS = [PLAIN, replace(PLAIN, place="post"), replace(PLAIN, place="parallel")]


@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=12))
def test_a_pattern_repeats_to_the_layers_and_no_shorter_one_does(layers: list[object]) -> None:
    found = pattern(layers)  # type: ignore[arg-type]
    assert list(Stack(found, layers=len(layers))) == layers
    for shorter in range(1, len(found)):
        assert list(Stack(tuple(layers[:shorter]), layers=len(layers))) != layers  # type: ignore[arg-type]


def test_the_longest_stack_takes_no_time() -> None:
    layers = [BLOCKS[0]] * 4095 + [BLOCKS[1]]
    assert len(pattern(layers)) == 4096
