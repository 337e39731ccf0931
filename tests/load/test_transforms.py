"""Each named transform and its inverse."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.load.transforms import TRANSFORMS, give, take
from qkv.spec import Attention

names = st.lists(st.sampled_from(sorted(TRANSFORMS.keys() - {"minus_one", "row"})), max_size=3).map(tuple)


@given(kv_heads=st.integers(1, 4), share=st.integers(1, 4), half=st.integers(1, 4), via=names)
def test_what_is_taken_is_given_back(kv_heads: int, share: int, half: int, via: tuple[str, ...]) -> None:
    attention, head_dim = Attention(kv_heads * share, kv_heads), 2 * half
    rows = (attention.heads + 2 * kv_heads) * head_dim
    x = torch.arange(rows * rows).reshape(rows, rows)
    sizes = [attention.heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    parts = take(x, via, sizes, attention, head_dim)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(give(parts, via, attention, head_dim), x)


def test_by_group_gathers_the_queries_of_all_groups() -> None:
    stored = torch.tensor([0, 1, 10, 20, 2, 3, 11, 21])  # q q k v of one group, then of the other
    q, k, v = take(stored, ("by_group",), [4, 2, 2], Attention(4, 2), 1)
    assert (q.tolist(), k.tolist(), v.tolist()) == ([0, 1, 2, 3], [10, 11], [20, 21])


def test_ggml_rotary_parts_the_pairs_of_neighbours() -> None:
    (halves,) = take(torch.arange(8), ("ggml_rotary",), [8], Attention(2, 2), 4)
    assert halves.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_minus_one() -> None:
    (w,) = take(torch.tensor([1.25, 0.5]), ("minus_one",), [2], Attention(1, 1), 2)
    assert w.tolist() == [0.25, -0.5]
    assert give([w], ("minus_one",), Attention(1, 1), 2).tolist() == [1.25, 0.5]


def test_row() -> None:
    (bias,) = take(torch.tensor([[1.0, 2.0]]), ("row",), [2], Attention(1, 1), 2)
    assert bias.tolist() == [1.0, 2.0]
    assert give([bias], ("row",), Attention(1, 1), 2).tolist() == [[1.0, 2.0]]


def test_a_transposed_matrix_lies_in_one_piece() -> None:
    (x,) = take(torch.ones(2, 3), ("transpose",), [3], Attention(1, 1), 2)
    assert x.shape == (3, 2)
    assert x.is_contiguous()
