"""The table of storage types (its numbers and sizes are held against the gguf package's in tests/load/test_gguf.py)."""

from qkv.kernels.blocks import BLOCKS, TYPES


def test_names_are_one_to_one() -> None:
    assert len(BLOCKS) == len(TYPES)
    assert all(BLOCKS[block.name] is block for block in TYPES.values())
