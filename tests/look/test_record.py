"""The tape holds what the model did, for any model, and leaves it as it was."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.look.record import Tape, record
from qkv.nn.attend import attend
from qkv.nn.attention import Attention
from qkv.nn.batch import Batch
from qkv.nn.stack import Transformer
from tests.tiny import tiny

MIXERS = {
    "rotary, grouped": [spec.Attention(4, 2, position=spec.Rotary())],
    "ALiBi, multi-query": [spec.Attention(4, 1, position=spec.Alibi())],
    "full, buckets": [spec.Attention(4, 4, mask=spec.Full(), position=spec.RelativeBias(8, 6, both_ways=True))],
    "window, capped": [spec.Attention(4, 2, mask=spec.Window(3), softcap=2.0, scale=0.7)],
    "pattern": [spec.Attention(4, 2, mask=spec.Window(2), position=spec.Rotary()), spec.Attention(4, 2)],
    "normed": [spec.Attention(4, 2, qk_norm=spec.RMS(), position=spec.Rotary(interleaved=True), qkv_bias=True)],
}
mixers = pytest.mark.parametrize("name", MIXERS)
IDS = [1, 2, 3, 4, 5, 6, 7]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def taped(model: Transformer, *calls: Any, cache: Any = None) -> Tape:
    with record(model) as tape:
        for ids in calls:
            model(ids, cache=cache)
    return tape


def one(tape: Tape) -> list[Tensor]:
    assert all(isinstance(layer, Tensor) for layer in tape.attention)
    return tape.attention  # type: ignore[return-value]


def by_hand(model: Transformer, ids: list[int]) -> list[Tensor]:
    """[heads, queries, keys] of each layer, from the states that go into it."""
    out, batch = [], Batch([len(ids)], [0], model.device)
    for block in model.decoder.blocks:
        mixer: Any = block.mixer

        def see(mixer: Any, args: tuple[Any, ...], mixer_: Any = mixer) -> None:
            x = args[0]
            q, k = (
                norm(layer(x).view(len(ids), -1, mixer_.head_dim))
                for norm, layer in ((mixer_.q_norm, mixer_.q), (mixer_.k_norm, mixer_.k))
            )
            q, k = mixer_.position.turn(q, k, batch)
            scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(4 // k.shape[1], 1)) * mixer_.scale
            cap, at = mixer_.spec.softcap, torch.arange(len(ids))
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            bias = mixer_.position.bias(batch, at[None])
            scores = scores if bias is None else scores + bias[0]
            allowed = mixer_.mask.allows(at[None, :, None], at[None, None, :])
            out.append(scores.where(allowed, torch.tensor(-math.inf)).softmax(-1))

        mixer.register_forward_pre_hook(see)
    model([ids])
    return out


@mixers
def test_weights_are_the_equations_and_sum_to_one(name: str) -> None:
    model = tiny(*MIXERS[name])
    layers = one(taped(model, [IDS]))
    assert [tuple(layer.shape) for layer in layers] == [(4, 7, 7)] * 2
    for layer in layers:
        torch.testing.assert_close(layer.sum(-1), torch.ones(4, 7))
        assert layer.dtype == torch.float32
        assert not layer.requires_grad
    torch.testing.assert_close(layers, by_hand(model, IDS), **CLOSE)


@mixers
def test_rows_of_a_batch_are_those_of_each_text_alone(name: str) -> None:
    model, texts = tiny(*MIXERS[name]), [IDS, [9, 8], [5, 5, 5, 5]]
    together = taped(model, texts).attention
    for row, text in enumerate(texts):
        alone = one(taped(model, [text]))
        torch.testing.assert_close([layer[row] for layer in together], alone, **CLOSE)


@pytest.mark.parametrize("name", [name for name in MIXERS if not name.startswith("full")])
@pytest.mark.parametrize("cuts", [[1] * 7, [3, 1, 3], [5, 2]], ids=str)
def test_calls_that_read_on_are_one_text(name: str, cuts: list[int]) -> None:
    """Rings give their keys in another order: the tape has them by position."""
    model, texts = tiny(*MIXERS[name]), [IDS, IDS[::-1]]
    ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    calls = [[text[end - cut : end] for text in texts] for cut, end in zip(cuts, ends, strict=True)]
    pieces = taped(model, *calls, cache=model.new_cache())
    assert len(pieces.calls) == len(cuts)
    for own, expected in zip(pieces.attention, taped(model, texts).attention, strict=True):
        torch.testing.assert_close(own, expected, **CLOSE)


def test_unequal_texts_that_read_on() -> None:
    model = tiny(*MIXERS["pattern"])
    tape = taped(model, [[1, 2, 3], [9]], [[4], [8, 7, 6]], cache=model.new_cache())
    for row, text in enumerate(([1, 2, 3, 4], [9, 8, 7, 6])):
        torch.testing.assert_close([layer[row] for layer in tape.attention], one(taped(model, [text])), **CLOSE)


@mixers
def test_the_model_is_as_it_was_afterwards(name: str) -> None:
    model = tiny(*MIXERS[name])
    before = model([IDS])[0]
    with record(model):
        torch.testing.assert_close(model([IDS])[0], before, **CLOSE)
    with pytest.raises(InputError), record(model):
        model([[]])
    assert all(m.attend is attend for m in model.modules() if isinstance(m, Attention))
    assert torch.equal(model([IDS])[0], before)


def test_gradients_still_flow_while_the_tape_runs() -> None:
    model = tiny(*MIXERS["pattern"])
    with record(model):
        model([IDS])[0].sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_half_precision_is_recorded_in_float32() -> None:
    model = tiny(*MIXERS["rotary, grouped"]).to(torch.bfloat16)
    for layer in one(taped(model, [IDS])):
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer.sum(-1), torch.ones(4, 7), atol=0.02, rtol=0)


def test_what_was_not_recorded_or_does_not_belong_together_is_said() -> None:
    model = tiny()
    with record(model) as nothing:
        pass
    with record(model, attention=False) as off:
        model([IDS])
    for tape in (nothing, off):
        with pytest.raises(InputError, match="nothing was recorded"):
            _ = tape.attention
    two = taped(model, [IDS], [IDS])
    with pytest.raises(InputError, match="not one text"):
        _ = two.attention
    assert [len(call.attention) for call in two.calls] == [2, 2]
    assert two.calls[1].attention[0][0].shape == (4, 7, 7)


def test_a_call_that_is_cut_off_is_not_on_the_tape() -> None:
    model = tiny()

    def stop(*_: Any) -> None:
        raise ZeroDivisionError

    with record(model) as tape:
        handle = model.decoder.blocks[1].register_forward_pre_hook(stop)
        with pytest.raises(ZeroDivisionError):
            model([[9, 8, 7]])
        handle.remove()
        model([IDS])
    torch.testing.assert_close(one(tape), one(taped(model, [IDS])))


def test_an_encoder_and_a_decoder() -> None:
    """Three kinds of attention, each where it belongs; with a cache the target's steps are joined."""
    full, causal, cross = (spec.Attention(4, 2, mask=m) for m in (spec.Full(), spec.Causal(), spec.Full()))
    stacks = [
        spec.Stack((spec.Block(mixer, spec.Plain(24), spec.RMS(), cross=own),), layers)
        for mixer, own, layers in ((full, None, 3), (causal, cross, 2))
    ]
    model = Transformer(spec.Model(31, 16, stacks[1], stacks[0])).eval()
    with record(model) as tape:
        model([IDS], [[9, 8, 7]])
    for found, layers, shape in (
        (tape.encoder, 3, (4, 7, 7)),
        (tape.attention, 2, (4, 3, 3)),
        (tape.cross, 2, (4, 3, 7)),
    ):
        assert [tuple(x.shape) for x in found] == [shape] * layers  # type: ignore[union-attr]
        for layer in found:
            torch.testing.assert_close(layer.sum(-1), torch.ones(shape[:2]))  # type: ignore[union-attr]
    with record(model) as steps, torch.no_grad():
        cache = model.new_cache(memory=model.encode([IDS]))
        for token in (9, 8, 7):
            stream, batch = model.batch([[token]], cache=cache)
            model.states(stream, batch, cache)
    for whole, joined in ((tape.attention, steps.attention), (tape.cross, steps.cross)):
        torch.testing.assert_close(joined, whole, **CLOSE)
    with record(model) as several:
        model([IDS, IDS[:2]], [[9], [8, 7]])
    assert [[tuple(x.shape) for x in layer] for layer in several.cross] == [[(4, 1, 7), (4, 2, 2)]] * 2


def test_layers_that_share_their_weights_are_told_apart() -> None:
    block = spec.Block(spec.Attention(4, 2), spec.Plain(24), spec.RMS())
    model = Transformer(spec.Model(31, 16, spec.Stack((block,), 3, shared=True))).eval()
    with record(model) as tape:
        model([IDS])
    assert len(one(tape)) == 3
    assert not torch.allclose(one(tape)[0], one(tape)[2])


def test_what_was_not_there_to_record() -> None:
    with record(tiny()) as tape:
        pass
    with pytest.raises(InputError, match="ran 0 times"):
        _ = tape.encoder
    model = tiny()
    with record(model) as tape:
        model([IDS])
    with pytest.raises(InputError, match="no cross-attention"):
        _ = tape.cross
