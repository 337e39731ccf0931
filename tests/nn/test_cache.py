"""Whatever a cache holds and however it was filled, the answer is that of the whole text at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.nn.batch import Batch
from qkv.nn.cache import DTYPES, Cache, Contiguous, Held, Storage, Stream
from qkv.nn.ring import Ring
from qkv.nn.stack import Transformer
from tests.tiny import VOCAB, tiny

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def attention(mask: spec.Mask, position: spec.Relative | None, **how: Any) -> spec.Attention:
    return spec.Attention(4, 2, mask=mask, position=position, **how)


MIXERS = {
    "all keys, rotary": [attention(spec.Causal(), spec.Rotary())],
    "all keys, ALiBi": [attention(spec.Causal(), spec.Alibi())],
    "all keys, buckets": [attention(spec.Causal(), spec.RelativeBias(8, 6))],
    "all keys, no position, capped": [attention(spec.Causal(), None, softcap=3.0)],
    "window of 1": [attention(spec.Window(1), spec.Rotary())],
    "window of 3": [attention(spec.Window(3), spec.Rotary())],
    "window of 3, ALiBi, capped": [attention(spec.Window(3), spec.Alibi(), softcap=3.0)],
    "window of 8, buckets": [attention(spec.Window(8), spec.RelativeBias(8, 6))],
    "windows and all keys": [attention(spec.Window(3), spec.Rotary()), attention(spec.Causal(), spec.Rotary(dims=2))],
    "two windows": [attention(spec.Window(2), spec.Alibi()), attention(spec.Window(5), spec.Alibi())],
}
mixers = pytest.mark.parametrize("name", MIXERS)


def whole(model: Transformer, texts: list[list[int]]) -> list[Tensor]:
    """Logits [length, V] of each text, each by itself and without a cache."""
    with torch.no_grad():
        return [model([text])[0] for text in texts]


def steps(model: Transformer, pieces: list[list[list[int]]], cache: Cache) -> list[Tensor]:
    """Logits [length, V] of each sequence, fed piece by piece: pieces[step][sequence]."""
    seen = [model(piece, cache=cache) for piece in pieces]
    return [torch.cat(parts) for parts in zip(*seen, strict=True)]


@st.composite
def cuttings(draw: st.DrawFn) -> list[list[list[int]]]:
    """One to three texts, cut into the same number of pieces, each wherever it likes."""
    count, rows = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    piece = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)
    return [[draw(piece) for _ in range(rows)] for _ in range(count)]


def joined(pieces: list[list[list[int]]]) -> list[list[int]]:
    return [[i for part in parts for i in part] for parts in zip(*pieces, strict=True)]


@mixers
def test_any_cutting_of_any_texts_is_one_pass(name: str) -> None:
    model = tiny(*MIXERS[name])

    @settings(max_examples=25)
    @given(cuttings(), st.booleans())
    def any_cutting(pieces: list[list[list[int]]], limited: bool) -> None:
        texts = joined(pieces)
        cache = model.new_cache(max(map(len, texts)) if limited else None)
        torch.testing.assert_close(steps(model, pieces, cache), whole(model, texts), **CLOSE)
        assert cache.lengths == [len(text) for text in texts]
        with torch.no_grad():
            torch.testing.assert_close(model(texts), whole(model, texts), **CLOSE)

    any_cutting()


@mixers
def test_rows_can_be_dropped_doubled_and_reordered_between_steps(name: str) -> None:
    model = tiny(*MIXERS[name])

    @settings(max_examples=20)
    @given(st.data())
    def any_choice(data: st.DataObject) -> None:
        before, after = data.draw(cuttings()), data.draw(cuttings())
        cache = model.new_cache()
        steps(model, before, cache)
        count = len(after[0])
        rows = data.draw(st.lists(st.integers(0, len(before[0]) - 1), min_size=count, max_size=count))
        cache.select(rows)
        then = steps(model, after, cache)
        for row, logits, more in zip(rows, then, joined(after), strict=True):
            expected = whole(model, [joined(before)[row] + more])[0][-len(more) :]
            torch.testing.assert_close(logits, expected, **CLOSE)

    any_choice()


def test_select_refuses_what_is_not_there() -> None:
    model = tiny()
    cache = model.new_cache()
    model([[1, 2], [3]], cache=cache)
    for rows in ([], [2], [0, -1]):
        with pytest.raises(InputError, match="holds 2 sequences"):
            cache.select(rows)
    assert cache.lengths == [2, 1]


@pytest.mark.parametrize("mask", [spec.Causal(), spec.Window(100)], ids=repr)
def test_growing_keeps_what_was_there(mask: spec.Mask) -> None:
    model = tiny(attention(mask, spec.Rotary()), layers=1)
    text = torch.randint(VOCAB, (150,)).tolist()
    cache, sizes, seen = model.new_cache(), [], []
    for start in range(0, 150, 15):
        seen.append(model([text[start : start + 15]], cache=cache)[0])
        sizes.append(cache.nbytes // (2 * 2 * 4 * 4))
    torch.testing.assert_close(torch.cat(seen), whole(model, [text])[0], **CLOSE)
    if mask == spec.Causal():
        assert sizes == [64] * 4 + [128] * 4 + [256] * 2
    else:
        assert sizes == [64] * 4 + [100] * 6, "a ring never grows beyond its window"


@pytest.mark.parametrize(
    ("mask", "length", "slots"),
    [
        (spec.Causal(), None, 64),
        (spec.Causal(), 50, 50),
        (spec.Window(20), None, 20),
        (spec.Window(20), 50, 20),
        (spec.Window(20), 12, 12),
        (spec.Window(2**30), None, 64),
        (spec.Window(80), 500, 80),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes(mask: spec.Mask, length: int | None, slots: int, dtype: torch.dtype) -> None:
    """2 · layers · sequences · slots · kv_heads · head_dim · bytes a number. Unlimited, it grows into its window."""
    model = tiny(attention(mask, None), layers=3).to(dtype)
    cache = model.new_cache(length)
    assert cache.nbytes == 0
    model([[1, 2, 3], [4]], cache=cache)
    assert cache.nbytes == 2 * 3 * 2 * slots * 2 * 4 * dtype.itemsize
    assert Stream().nbytes == 0


def test_storages() -> None:
    def kinds(mask: spec.Mask, length: int | None) -> set[type[Storage]]:
        return {type(layer) for layer in tiny(attention(mask, None)).new_cache(length).layers}

    assert kinds(spec.Causal(), None) == kinds(spec.Causal(), 9) == kinds(spec.Window(9), 9) == {Contiguous}
    assert kinds(spec.Window(9), None) == kinds(spec.Window(9), 10) == {Ring}
    with pytest.raises(ConfigError, match="mask Full"):
        kinds(spec.Full(), None)


@mixers
def test_an_error_in_between_changes_nothing(name: str) -> None:
    model = tiny(*MIXERS[name], embed=spec.Embed(position=spec.Learned(9)))
    text = [5, 9, 2, 30, 7, 7, 1, 0, 4]
    cache = model.new_cache(9)
    first = model([text[:5]], cache=cache)[0]
    for wrong, why in {
        "out of range": ([[1, VOCAB]], "outside the vocabulary"),
        "beyond the cache": ([[1] * 5], "don't fit this cache of 9"),
        "empty": ([[]], "empty"),
        "another number of sequences": ([[1], [2]], "holds 1 sequences, the input has 2"),
    }.values():
        with pytest.raises(InputError, match=why):
            model(wrong, cache=cache)
        assert cache.lengths == [5]
    unlimited = model.new_cache()
    model([text[:5]], cache=unlimited)
    with pytest.raises(InputError, match="9 learned positions"):
        model([[1] * 5], cache=unlimited)
    for c in (cache, unlimited):
        torch.testing.assert_close(torch.cat((first, model([text[5:]], cache=c)[0])), whole(model, [text])[0], **CLOSE)


def cut_off(model: Transformer, ids: list[list[int]], cache: Cache) -> None:
    """A step that ends after the first layer has taken its keys."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.decoder.blocks[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(ids, cache=cache)
    handle.remove()


@mixers
def test_a_step_that_was_cut_off_is_read_again_or_refused(name: str) -> None:
    """Where a ring's older keys are gone for good, going on is an error and not another answer."""
    model = tiny(*MIXERS[name])
    text = [5, 9, 2, 30, 7, 7, 1, 0, 4]
    expected = whole(model, [text])[0]
    cache = model.new_cache()
    cut_off(model, [[1], [2]], cache)
    first = model([text[:5]], cache=cache)[0]
    cut_off(model, [[8]], cache)
    second = model([text[5:7]], cache=cache)[0]
    torch.testing.assert_close(torch.cat((first, second)), expected[:7], **CLOSE)
    cut_off(model, [[8, 8]], cache)
    if isinstance(cache.layers[0], Ring):
        with pytest.raises(InputError, match="cut off"):
            model([text[7:8]], cache=cache)
    else:
        torch.testing.assert_close(model([text[7:]], cache=cache)[0], expected[7:], **CLOSE)


# --- going back -----------------------------------------------------------------------------------------------------


@mixers
@pytest.mark.parametrize("reserved", [0, 4])
def test_what_was_taken_back_is_never_seen(name: str, reserved: int) -> None:
    """Pieces are read, partly taken back, rows chosen anew: each logit is that of the text without what was taken."""
    model = tiny(*MIXERS[name])

    @settings(max_examples=15)
    @given(st.data())
    def any_history(data: st.DataObject) -> None:
        cache = model.new_cache(data.draw(st.sampled_from([None, 60])))
        cache.reserve(reserved)
        texts: list[list[int]] = [[] for _ in range(data.draw(st.integers(1, 3)))]
        for _ in range(data.draw(st.integers(2, 5))):
            pieces = [data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)) for _ in texts]
            seen = model(pieces, cache=cache)
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
            for logits, text, piece in zip(seen, texts, pieces, strict=True):
                torch.testing.assert_close(logits, whole(model, [text])[0][-len(piece) :], **CLOSE)
            before = [len(text) - len(piece) for text, piece in zip(texts, pieces, strict=True)]
            whole_piece = [len(piece) <= cache.undoable(n) for piece, n in zip(pieces, before, strict=True)]
            most = [len(piece) if all_of_it else 1 for piece, all_of_it in zip(pieces, whole_piece, strict=True)]
            back = [data.draw(st.integers(0, n)) for n in most]
            texts = [text[: len(text) - n] for text, n in zip(texts, back, strict=True)]
            cache.truncate([len(text) for text in texts])
            if data.draw(st.booleans()):
                rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=3))
                cache.select(rows)
                texts = [texts[row] for row in rows]
            assert cache.lengths == [len(text) for text in texts]

    any_history()


def test_truncate_refuses_what_is_not_there() -> None:
    model = tiny()
    cache = model.new_cache()
    model([[1, 2], [3]], cache=cache)
    for lengths in ([1], [3, 1], [2, -1], [1, 1, 1]):
        with pytest.raises(InputError, match=r"holds \[2, 1\] tokens; it can't go back to"):
            cache.truncate(lengths)
    assert cache.lengths == [2, 1]
    cache.truncate([0, 0])
    torch.testing.assert_close(model([[5, 6], [7]], cache=cache), whole(model, [[5, 6], [7]]), **CLOSE)
    cache.truncate([0, 1])
    torch.testing.assert_close(model([[1, 2], [4]], cache=cache)[1], whole(model, [[7, 4]])[0][1:], **CLOSE)


@mixers
def test_two_caches_do_not_meet(name: str) -> None:
    model = tiny(*MIXERS[name])
    texts = [[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]]
    caches = [model.new_cache(), model.new_cache(6)]
    seen: list[list[Tensor]] = [[], []]
    for cut in (slice(0, 2), slice(2, 3), slice(3, 6)):
        for text, cache, out in zip(texts, caches, seen, strict=True):
            out.append(model([text[cut]], cache=cache)[0])
    torch.testing.assert_close([torch.cat(out) for out in seen], whole(model, texts), **CLOSE)


@mixers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = tiny(*MIXERS[name]).to(dtype)
    pieces = [[[1, 2, 3], [4]], [[5], [6]], [[7, 8, 9, 10], [11, 12]]]
    seen = steps(model, pieces, model.new_cache())
    for logits, expected in zip(seen, whole(model, joined(pieces)), strict=True):
        assert logits.dtype == dtype
        torch.testing.assert_close(logits, expected, atol=0.05 * expected.abs().max().item(), rtol=0)


def test_what_is_held_is_of_the_weights_precision_and_carries_no_gradient() -> None:
    model = tiny(attention(spec.Causal(), None), attention(spec.Window(4), None)).to(torch.bfloat16)
    cache = model.new_cache()
    assert not model([[1, 2, 3]], cache=cache)[0].requires_grad
    for layer in cache.layers:
        assert isinstance(layer, Contiguous | Ring)
        assert layer.k is not None
        assert layer.k.dtype == torch.bfloat16
        assert not layer.k.requires_grad


# --- in fewer bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [Contiguous, lambda: Contiguous(60), lambda: Ring(4), lambda: Ring(4, at_once=True)])
def test_what_is_seen_is_what_is_held_however_it_came(make: Callable[[], Held], dtype: torch.dtype) -> None:
    """A step's own keys too: to the bit the rounded ones, at their positions, and all that a window of 4 must see."""

    @settings(max_examples=10)
    @given(st.data())
    def any_history(data: st.DataObject) -> None:
        storage, rows = make(), data.draw(st.integers(1, 3))
        storage.keep_in(dtype)
        storage.reserve(3)
        exact = [torch.empty(0, 2, 3) for _ in range(rows)]
        for _ in range(data.draw(st.integers(1, 5))):
            starts = [len(x) for x in exact]
            lengths = data.draw(st.lists(st.integers(1, 6), min_size=len(exact), max_size=len(exact)))
            new = [torch.randn(n, 2, 3) for n in lengths]
            exact = [torch.cat(pair) for pair in zip(exact, new, strict=True)]
            k, batch = torch.cat(new), Batch(lengths, starts, torch.device("cpu"))
            seen = storage.extend(k, -k, batch)
            assert seen.k.dtype == seen.v.dtype == torch.float32
            for b, positions in enumerate(seen.positions().expand(len(exact), -1)):
                there = positions >= max(0, starts[b] - 3)  # older ones may be gone
                known = exact[b][positions[there]].to(dtype).float().transpose(0, 1)
                assert torch.equal(seen.k[b][:, there], known)
                assert torch.equal(seen.v[b][:, there], -known)
                assert set(range(max(0, starts[b] - 3), batch.ends[b])) <= set(positions.tolist())
            back = [data.draw(st.integers(max(n - min(3, storage.undoable(s)), s), n)) for n, s in
                    zip(batch.ends, starts, strict=True)]  # fmt: skip
            storage.truncate(back)
            chosen = data.draw(st.lists(st.integers(0, len(exact) - 1), min_size=1, max_size=3))
            storage.select(chosen)
            exact = [exact[i][: back[i]] for i in chosen]
            if not all(map(len, exact)):
                break

    any_history()


@mixers
def test_in_16_bits_the_answer_is_almost_the_same_from_half_the_memory(name: str) -> None:
    model = tiny(*MIXERS[name])
    pieces = [[[1, 2, 3], [4]], [[5], [6]], [[7, 8, 9, 10], [11, 12]]]
    plain, half = model.new_cache(), model.new_cache(dtype=torch.bfloat16)
    for ours, exact in zip(steps(model, pieces, half), steps(model, pieces, plain), strict=True):
        assert ours.dtype == torch.float32
        assert 0 < (ours - exact).norm() < 0.02 * exact.norm()
    assert half.nbytes * 2 == plain.nbytes
    for cache in (half, plain):
        cache.select([1, 0, 1])
        cache.truncate([3, 7, 3])
    ours, exact = (torch.cat(model([[1], [2, 3], [4]], cache=cache)) for cache in (half, plain))
    assert (ours - exact).norm() < 0.02 * exact.norm()


def test_a_dtype_that_holds_no_keys_is_refused() -> None:
    for dtype, name in ((torch.int8, "int8"), (torch.bool, "bool"), (torch.complex64, "complex64")):
        with pytest.raises(InputError, match=f"keys and values in float64, .*, not in {name}"):
            tiny().new_cache(dtype=dtype)
    assert tiny().new_cache().dtype is None
    assert tiny().new_cache(dtype=torch.float16).dtype == torch.float16
