"""Weights as the page gets them are the recorder's, rounded; what is said of a head is what its weights say."""

import pytest
import torch
from torch import Tensor

import qkv
from qkv import spec
from qkv.look.record import record
from qkv.serve import maps
from tests.tiny import text_to_text, tiny_spec

IDS = [1, 2, 3, 1, 2, 3, 1]


def model(*mixers: spec.Mixer) -> qkv.Model:
    torch.manual_seed(0)
    made = qkv.Model(tiny_spec(*mixers)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return made


def close(layers: list[Tensor], expected: list[Tensor]) -> None:
    assert len(layers) == len(expected)
    for layer, other in zip(layers, expected, strict=True):
        assert layer.dtype == torch.int16
        torch.testing.assert_close(layer / maps.SCALE, other, atol=0.5001 / maps.SCALE, rtol=0)


def test_weights_are_the_recorders() -> None:
    made = model()
    with torch.no_grad(), record(made) as tape:
        made([IDS])
    found = maps.recorded(made, IDS, [])
    assert list(found) == ["decoder"]
    close(found["decoder"], tape.attention)
    assert maps.size_of(found) == 2 * 4 * 7 * 7 * 2


def test_an_encoder_decoder_has_three_parts() -> None:
    made = text_to_text()
    target = [made.spec.start, 5, 6]
    with torch.no_grad(), record(made) as tape:
        made([IDS], [target])
    found = maps.recorded(made, IDS, target)
    assert list(found) == list(maps.parts(made.spec)) == ["encoder", "decoder", "cross"]
    for part, expected in (("encoder", tape.encoder), ("decoder", tape.attention), ("cross", tape.cross)):
        close(found[part], expected)
    assert found["cross"][0].shape[1:] == (3, 7)
    assert "self" not in maps.summary(found["cross"][0], None)[0]


def test_a_head_is_its_rows_without_the_zeros_at_their_ends() -> None:
    made = model()
    head = maps.recorded(made, IDS, [])["decoder"][1][2]
    found = maps.one_head(head, maps.parts(made.spec)["decoder"][1], made.spec.dim)
    rows = found.pop("weights")
    assert [len(row) for row in rows] == [int((row > 0).nonzero().max()) + 1 for row in head]
    assert [row + [0] * (7 - len(row)) for row in rows] == head.tolist()
    assert all(abs(sum(row) * found["unit"] - 1) < 0.001 for row in rows)
    assert found == {"unit": 1e-4, "width": 4, "scale": 0.5, "heads": 4, "kv_heads": 2, "mask": "Causal"}


def layer(*heads: list[list[float]]) -> Tensor:
    return (torch.tensor(heads) * maps.SCALE).round().to(torch.int16)


def test_what_a_head_looks_at() -> None:
    before = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    wash = [[0.25] * 4] * 4
    ahead = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    one, two, three = maps.summary(layer(before, wash, ahead), [5, 6, 5, 6])
    assert one == {
        "map": [255, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0, 0, 0, 0, 255, 0],
        "rows": 4,
        "columns": 4,
        "first": 0.3333,
        "self": 0.0,
        "previous": 1.0,
        "next": 0.0,
        "entropy": 0.0,
        "induction": 1.0,  # in such a text the token before is the one that came after the same token
    }
    assert (two["entropy"], two["self"], two["first"], two["induction"]) == (2.0, 0.25, 0.25, 0.25)
    assert (three["next"], three["previous"], three["self"]) == (1.0, 0.0, 0.3333)


def test_induction_needs_a_token_that_comes_again() -> None:
    eye = torch.eye(4)[None]
    assert "induction" not in maps.summary((eye * maps.SCALE).to(torch.int16), [1, 2, 3, 4])[0]
    heads = (torch.eye(5)[[0, 0, 0, 2, 3]][None] * maps.SCALE).to(torch.int16)
    assert maps.summary(heads, [1, 2, 3, 2, 3])[0]["induction"] == 1.0  # the fourth and the fifth


def test_a_long_text_has_a_small_map_that_loses_no_peak() -> None:
    head = torch.zeros(1, 100, 90, dtype=torch.int16)
    head[0, 57, 33] = maps.SCALE
    (found,) = maps.summary(head, None)
    assert (found["rows"], found["columns"]) == (maps.SMALL, maps.SMALL)
    small = torch.tensor(found["map"]).view(maps.SMALL, maps.SMALL)
    assert small.max() == 255
    assert 1 <= int((small > 0).sum()) <= 4


def test_one_token_alone() -> None:
    (found,) = maps.summary(torch.full((1, 1, 1), maps.SCALE, dtype=torch.int16), [3])
    assert found == {"map": [255], "rows": 1, "columns": 1, "first": 1.0, "entropy": 0.0}


@pytest.mark.parametrize(
    ("heads", "context", "most"), [(4, None, 512), (4, 100, 100), (512, None, 128), (4, 10_000, 512)]
)
def test_a_pass_has_a_limit(heads: int, context: int | None, most: int) -> None:
    """2 layers of 512 heads · 128² · 4 bytes are 64 MiB."""
    stack = tiny_spec(spec.Attention(heads, heads, head_dim=4)).decoder
    assert maps.most_tokens(spec.Model(31, 16, stack, context=context)) == most
