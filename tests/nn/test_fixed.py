"""What a decoder keeps of an encoder: encoded once, looked at in any order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import InputError
from qkv.nn.batch import Batch
from qkv.nn.fixed import Fixed
from qkv.nn.stack import Transformer
from tests.nn.test_cache import CLOSE, cuttings
from tests.tiny import VOCAB


def seq2seq(position: spec.Relative | None = None) -> Transformer:
    """An encoder and a decoder of two layers; with `position`, one for all layers of each."""
    full, causal = (spec.Attention(4, 2, mask=mask) for mask in (spec.Full(), spec.Causal()))
    cross = spec.Attention(4, 1, mask=spec.Full())
    kept = [
        spec.Stack((spec.Block(mixer, spec.Plain(24), spec.RMS(), cross=own),), 2, spec.RMS(), position=position)
        for mixer, own in ((full, None), (causal, cross))
    ]
    model = Transformer(spec.Model(VOCAB, 16, kept[1], kept[0], start=0)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model


texts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7), min_size=1, max_size=3)


@given(pieces=cuttings(), data=st.data())
@pytest.mark.parametrize("position", [None, spec.RelativeBias(8, 6)], ids=repr)
def test_a_memory_in_any_order(
    position: spec.Relative | None, pieces: list[list[list[int]]], data: st.DataObject
) -> None:
    """Encoded once, read in pieces, rows chosen anew in between."""
    model, rows = seq2seq(position), len(pieces[0])
    sources = data.draw(st.lists(texts.map(lambda t: t[0]), min_size=rows, max_size=rows), label="sources")
    order = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4), label="order")
    with torch.no_grad():
        cache = model.new_cache(memory=model.encode(sources))
        stream, batch = model.batch(pieces[0], cache=cache)
        model.states(stream, batch, cache)
        cache.select(order)
        later = [[1 + i, 2] for i in range(len(order))]
        stream, batch = model.batch(later, cache=cache)
        found = batch.split(model.logits(model.states(stream, batch, cache)))
        for i, row in enumerate(order):
            expected = model([sources[row]], [pieces[0][row] + later[i]])[0][-2:]
            torch.testing.assert_close(found[i], expected, **CLOSE)


def test_a_memory_is_copied_only_where_rows_are_of_other_sources() -> None:
    """A beam search reorders at every step, mostly within the rows of a prompt."""
    model, sources = seq2seq(), [[1, 2, 3], [4]]
    with torch.no_grad():
        cache = model.new_cache(memory=model.encode(sources))
        model([[1], [1]], cache=cache)
        cache.select([0, 0, 1, 1])
        held = cache.layers[0].fixed.k
        model([[2], [3], [4], [5]], cache=cache)
        cache.select([1, 1, 3, 2])
        assert cache.layers[0].fixed.k is held
        cache.select([3, 0])
        found = model([[6], [6]], cache=cache)
        expected = model([[4], [1, 2, 3]], [[1, 4, 6], [1, 3, 6]])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[-1:], other[-1:], **CLOSE)


def test_a_memory_is_for_as_many_sequences() -> None:
    model = seq2seq()
    cache = model.new_cache(memory=model.encode([[1, 2], [3]]))
    assert cache.nbytes == 2 * 2 * 2 * 2 * 4 * 4  # layers · k and v · sequences · slots · head_dim · bytes
    stream, batch = model.batch([[1]], cache=cache)
    with pytest.raises(InputError, match="1 targets for 2 sequences that were encoded"):
        model.states(stream, batch, cache)


def test_a_decoder_beside_an_encoder_needs_its_states() -> None:
    with pytest.raises(InputError, match="give `memory`, which `encode` makes"):
        seq2seq().new_cache()


def test_beside_a_memory_the_decoders_own_tokens_can_be_taken_back() -> None:
    model = seq2seq()
    with torch.no_grad():
        cache = model.new_cache(memory=model.encode([[1, 2, 3], [4]]))
        cache.reserve(3)
        assert cache.undoable(5) > 1000
        model([[1, 2, 3], [4, 5]], cache=cache)
        cache.truncate([1, 2])
        found = model([[6], [7, 8]], cache=cache)
        expected = model([[1, 2, 3], [4]], [[1, 6], [4, 5, 7, 8]])
    torch.testing.assert_close(found, [expected[0][1:], expected[1][2:]], **CLOSE)


def test_a_memory_in_16_bits_is_seen_rounded() -> None:
    model, sources = seq2seq(), [[1, 2, 3], [4]]
    with torch.no_grad():
        memory = model.encode(sources)
        plain, half = (model.new_cache(memory=memory, dtype=dtype) for dtype in (None, torch.bfloat16))
        assert half.nbytes * 2 == plain.nbytes > 0
        exact, ours = (model([[1, 2], [3, 4, 5]], cache=cache) for cache in (plain, half))
    for one, other in zip(ours, exact, strict=True):
        assert 0 < (one - other).norm() < 0.02 * other.norm()
    k = torch.randn(4, 1, 2)
    fixed = Fixed(k, -k, Batch([3, 1], [0, 0], torch.device("cpu")))
    fixed.keep_in(torch.bfloat16)
    seen = fixed.look(Batch([1, 1], [0, 0], torch.device("cpu")))
    assert seen.k.dtype == seen.v.dtype == torch.float32
    assert torch.equal(seen.k[0, 0], k[:3, 0].bfloat16().float())
    assert torch.equal(seen.v[1, 0, 0], -k[3, 0].bfloat16().float())
