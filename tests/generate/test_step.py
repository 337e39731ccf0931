"""One step: fair shares, an encoder's reading in groups, and dropout off."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv.generate.step import Reader, new_cache, share
from qkv.nn.fixed import Both
from qkv.nn.modes import evaluating
from qkv.nn.stack import Transformer
from tests.generate.tiny import pair, pair_spec, tiny


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 60))
def test_share_is_even_bounded_and_leaves_nobody_out(waiting: list[int], chunk: int) -> None:
    counts = share(waiting, chunk)
    assert all(1 <= n <= w for n, w in zip(counts, waiting, strict=True))
    assert sum(counts) <= max(chunk, len(waiting))
    assert sum(counts) == min(sum(waiting), max(chunk, len(waiting))) or len(waiting) > 1
    unfinished = [n for n, w in zip(counts, waiting, strict=True) if n < w]
    assert not unfinished or max(unfinished) - min(unfinished) <= 1
    assert not unfinished or max(counts) <= max(unfinished)


@pytest.mark.parametrize("kind", ["relative", "learned"])
@pytest.mark.parametrize("chunk", [1, 4, 7, 100])
def test_sources_are_read_in_groups_with_the_same_memory(
    kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sources = pair(kind), [[5, 6, 7], [9], [1, 2, 3, 4, 5], [8, 8]]
    groups, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda ids: (groups.append(ids), encode(ids))[1])
    cache = new_cache(model, sources, 9, chunk)
    logits = Reader(model)([[0]] * 4, cache, [1, 1, 1, 1])
    assert [ids for group in groups for ids in group] == sources
    assert all(len(group) == 1 or sum(map(len, group)) <= chunk for group in groups)
    monkeypatch.undo()
    with torch.no_grad():
        alone = [model([source], [[0]])[0][-1] for source in sources]
    torch.testing.assert_close(logits, torch.stack(alone), atol=1e-5, rtol=0)


def test_what_is_remembered_of_a_source_takes_no_gradient_and_no_dropout() -> None:
    model = Transformer(pair_spec("relative")).train()
    layer = new_cache(model, [[1, 2]], None, 100).layers[0]
    assert isinstance(layer, Both)
    assert not layer.fixed.k.requires_grad
    assert model.training


def test_only_those_that_are_ready_have_logits() -> None:
    model = tiny()
    logits = Reader(model)([[1, 2, 3], [4], [5, 6]], model.new_cache(), [1, 0, 1])
    alone = [Reader(model)([ids], model.new_cache(), [1])[0] for ids in ([1, 2, 3], [5, 6])]
    torch.testing.assert_close(logits, torch.stack(alone), atol=1e-5, rtol=0)
    assert Reader(model)([[1, 2]], model.new_cache(), [0]).shape == (0, model.spec.vocab)


def test_each_part_comes_back_to_its_mode() -> None:
    model = Transformer(tiny().spec).train()
    model.decoder.norm.eval()

    def broken() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert model.training
    assert not model.decoder.norm.training
