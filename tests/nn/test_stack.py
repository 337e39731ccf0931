"""The whole model at its edges: what it takes, what it gives, and what a module must be able to do."""

import copy
import dataclasses
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.nn.attention import Attention
from qkv.nn.batch import Batch
from qkv.nn.cache import Stream
from qkv.nn.packed import Packed
from qkv.nn.stack import Transformer
from tests.tiny import VOCAB, tiny

IDS = torch.tensor([[1, 2, 3], [30, 0, 7]])
SPECS = {
    "llama": spec.Attention(4, 2, position=spec.Rotary()),
    "biases and norms": spec.Attention(
        4, 1, qkv_bias=True, out_bias=True, qk_norm=spec.RMS(), position=spec.RelativeBias(8, 6)
    ),
    "full": spec.Attention(4, 4, mask=spec.Full(), position=spec.Alibi(), softcap=5.0),
}


def whole(place: spec.Place, mixer: spec.Attention, activation: spec.Activation) -> spec.Model:
    mlp = spec.Plain(24, activation, bias=True) if place == "post" else spec.Gated(24, activation)
    norm = spec.LayerNorm() if place == "post" else spec.RMS(one_plus=True)
    embed = spec.Embed(spec.Learned(20), scale=2.0, norm=norm)
    stack = spec.Stack((spec.Block(mixer, mlp, norm, place),), 2, norm, embed)
    return spec.Model(VOCAB, 16, stack, head=spec.LMHead(tied=place == "pre", bias=True, softcap=9.0))


WHOLE = {
    "pre": whole("pre", SPECS["llama"], "silu"),
    "post": whole("post", SPECS["full"], "gelu_tanh"),
    "sandwich": whole("sandwich", SPECS["biases and norms"], "relu2"),
    "parallel": whole("parallel", SPECS["llama"], "gelu"),
}
models = pytest.mark.parametrize("name", WHOLE)


# --- what it takes --------------------------------------------------------------------------------------------------


def test_a_tensor_gives_a_tensor_and_a_list_a_list() -> None:
    model = tiny()
    logits = model(IDS)
    assert logits.shape == (2, 3, VOCAB)
    unequal = model([[1, 2, 3], [30]])
    assert [tuple(x.shape) for x in unequal] == [(3, VOCAB), (1, VOCAB)]
    torch.testing.assert_close(unequal[0], logits[0])
    torch.testing.assert_close(unequal[1], logits[1, :1])


@pytest.mark.parametrize(
    "ids",
    [
        IDS.int(),
        IDS.to(torch.uint8),
        IDS.T.contiguous().T,
        IDS.tolist(),
        [tuple(row) for row in IDS.tolist()],
        list(IDS),
        [IDS[0], IDS[1].int()],
        IDS.numpy(),
        [np.array(row, dtype=np.int32) for row in IDS.tolist()],
        [[np.int64(i) for i in row] for row in IDS.tolist()],
        (range(1, 4), [30, 0, 7]),
    ],
    ids=lambda ids: f"{type(ids).__name__} of {type(ids[0]).__name__}",
)
def test_whole_numbers_of_any_kind(ids: Any) -> None:
    model = tiny()
    for own, expected in zip(model(ids), model(IDS), strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        (torch.tensor([1, 2]), r"\[batch, length\], got the shape \[2\]"),
        (torch.tensor([[[1]]]), r"\[batch, length\], got the shape \[1, 1, 1\]"),
        (torch.tensor(1), r"\[batch, length\], got the shape \[\]"),
        (torch.tensor([[1.0]]), "sequence 0 must be a row of whole numbers, got torch.float32"),
        (torch.tensor([[True]]), "sequence 0 must be a row of whole numbers, got torch.bool"),
        (torch.tensor([[1j]]), "sequence 0 must be a row of whole numbers, got torch.complex64"),
        ([1, 2, 3], r"sequence 0 must be a row of whole numbers, got torch.int64 of shape \[\]"),
        ([[1], [1.0]], "sequence 1 must be a row of whole numbers, got torch.float32"),
        ([[1], [1.5]], "sequence 1 must be a row of whole numbers, got torch.float32"),
        ([[1], [True]], "sequence 1 must be a row of whole numbers, got torch.bool"),
        ([[1], [[1]]], r"sequence 1 must be a row of whole numbers, got torch.int64 of shape \[1, 1\]"),
        ([[1], [None]], r"sequence 1 must be a row of whole numbers, got \[None\]"),
        ([[1], ["a"]], r"sequence 1 must be a row of whole numbers, got \['a'\]"),
        ([[2**70]], r"sequence 0 must be a row of whole numbers, got \[1180591620717411303424\]"),
        ("text", "sequence 0 must be a row of whole numbers, got 't'"),
        ([[1], []], "sequence 1 is empty"),
        ([[1], torch.tensor([], dtype=torch.long)], "sequence 1 is empty"),
        (torch.zeros(2, 0, dtype=torch.long), "sequence 0 is empty"),
        ([], "no sequence"),
        (torch.zeros(0, 3, dtype=torch.long), "no sequence"),
        ([[1], [VOCAB]], f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ([[1], [-1]], f"token id -1 is outside the vocabulary of {VOCAB}"),
        (torch.tensor([[2**62]]), "token id 4611686018427387904 is outside"),
    ],
)
def test_everything_else_is_refused(ids: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        tiny()(ids)


# --- what it is -----------------------------------------------------------------------------------------------------


@models
@pytest.mark.parametrize("ids", [IDS, [[1, 2, 3, 4, 5], [6], [7, 8]]], ids=["equal", "unequal"])
def test_every_weight_gets_a_gradient(name: str, ids: Any) -> None:
    model = Transformer(WHOLE[name])
    logits = model(ids)
    (logits if isinstance(ids, torch.Tensor) else torch.cat(logits)).square().sum().backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert torch.isfinite(weight.grad).all(), weight_name
        assert weight.grad.any(), weight_name


def test_gradients_flow_without_a_cache_and_none_with_one() -> None:
    model = tiny()
    assert model(IDS).requires_grad
    assert not model(IDS, cache=model.new_cache()).requires_grad
    with torch.no_grad():
        assert not model(IDS).requires_grad
    assert torch.is_grad_enabled()


@models
def test_state_copies_and_pickles_are_the_same_model(name: str) -> None:
    model = Transformer(WHOLE[name]).eval()
    fresh = Transformer(WHOLE[name]).eval()
    assert not torch.equal(fresh(IDS), model(IDS))
    fresh.load_state_dict(model.state_dict())
    for same in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(IDS), model(IDS))
        assert same.spec == model.spec
        assert not {p.data_ptr() for p in same.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_activations_pickle() -> None:
    for activation in ("relu", "gelu", "gelu_tanh", "silu", "relu2", "tanh"):
        model = Transformer(whole("pre", SPECS["llama"], activation)).eval()  # type: ignore[arg-type]
        assert torch.equal(pickle.loads(pickle.dumps(model))(IDS), model(IDS))


@models
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_another_precision(name: str, dtype: torch.dtype) -> None:
    model = Transformer(WHOLE[name]).eval()
    expected = model(IDS)
    logits = model.to(dtype)(IDS)
    assert model.dtype == logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, atol=0.03, rtol=0)


@models
def test_on_the_meta_device_nothing_is_allocated(name: str) -> None:
    large = spec.Model(**{**vars(WHOLE[name]), "vocab": 2**24, "dim": 2**18})
    with torch.device("meta"):
        model = Transformer(large)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert sum(p.numel() for p in model.parameters()) > 2**42
    assert model.device.type == "meta"


def test_blocks_take_turns() -> None:
    local, full = (spec.Attention(4, 2, mask=mask) for mask in (spec.Window(2), spec.Causal()))
    model = tiny(local, local, full, layers=7)
    masks = [m.mask.spec for m in model.modules() if isinstance(m, Attention)]
    assert masks == [spec.Window(2), spec.Window(2), spec.Causal()] * 2 + [spec.Window(2)]


def test_logits_by_hand() -> None:
    """The last norm and the head, on the states of the blocks; tied means no weights of its own."""
    model = tiny(layers=1)
    batch = Batch([3], [0], model.device)
    x = model.decoder.blocks[0](model.decoder.embed.tokens.weight[IDS[0]], batch, Stream())
    expected = model.decoder.norm(x) @ model.decoder.embed.tokens.weight.T
    torch.testing.assert_close(model(IDS[:1])[0], expected)
    assert not list(model.head.parameters())


def test_tied_logits_follow_the_embedding() -> None:
    model = tiny()
    with torch.no_grad():
        model.decoder.embed.tokens.weight.zero_()
    assert not model(IDS).any()


# --- encoders, and encoders with decoders ---------------------------------------------------------------------------


def two_stacks(**how: Any) -> spec.Model:
    """Post-norm, learned positions, one table unless said otherwise."""
    stacks = [
        spec.Stack(
            (spec.Block(spec.Attention(4, 4, mask=mask), spec.Plain(24), spec.LayerNorm(), "post", cross=cross),),
            2,
            embed=spec.Embed(spec.Learned(9)),
        )
        for mask, cross in ((spec.Full(), None), (spec.Causal(), spec.Attention(4, 4, mask=spec.Full())))
    ]
    return spec.Model(VOCAB, 16, stacks[1], stacks[0], **{"start": 1, **how})


def encoder(head: spec.Head, **embed: Any) -> Transformer:
    block = spec.Block(spec.Attention(4, 4, mask=spec.Full()), spec.Plain(24), spec.LayerNorm(), "post")
    stack = spec.Stack((block,), 2, embed=spec.Embed(**embed))
    return Transformer(spec.Model(VOCAB, 16, encoder=stack, head=head)).eval()


def test_a_target_is_read_by_the_decoder_and_the_ids_by_the_encoder() -> None:
    model = Transformer(two_stacks()).eval()
    unequal = model([[1, 2, 3], [30]], [[5], [6, 7]])
    assert [tuple(x.shape) for x in unequal] == [(1, VOCAB), (2, VOCAB)]
    both = model(IDS, torch.tensor([[5, 4], [6, 7]]))
    assert both.shape == (2, 2, VOCAB)
    torch.testing.assert_close(both[0, :1], model([[1, 2, 3]], [[5]])[0])
    memory = model.encode([[1, 2, 3]])
    stream, batch = model.batch([[5]])
    torch.testing.assert_close(model.logits(model.states(stream, batch, memory=memory)), both[0, :1])


def test_without_a_target_the_decoder_reads_the_ids_behind_the_start() -> None:
    model = Transformer(two_stacks()).eval()
    torch.testing.assert_close(model(IDS), model(IDS, torch.tensor([[1, 1, 2], [1, 30, 0]])))
    torch.testing.assert_close(model([[4, 5]]), model([[4, 5]], [[1, 4]]))
    with pytest.raises(ConfigError, match="names no start token"):
        Transformer(two_stacks(start=None))(IDS)
    narrow = Transformer(replace(two_stacks(start=300), vocab=301)).eval()
    torch.testing.assert_close(narrow(IDS.to(torch.uint8)), narrow(IDS))


@pytest.mark.parametrize("ids", [[1, 2], [[]], [], torch.tensor([1, 2]), torch.tensor(3), None, "ab"])
def test_what_an_encoder_refuses_is_refused_before_it_is_shifted(ids: Any) -> None:
    with pytest.raises(InputError):
        Transformer(two_stacks())(ids)


def test_no_graph_stays_in_a_cache() -> None:
    model = Transformer(two_stacks())
    cache = model.new_cache(memory=model.encode([[1, 2, 3]]))
    assert not cache.layers[0].fixed.k.requires_grad
    assert not model([[5]], cache=cache)[0].requires_grad


def test_one_table_or_two() -> None:
    shared, own = (Transformer(two_stacks(one_table=one)) for one in (True, False))
    assert shared.decoder.embed.tokens is shared.encoder.embed.tokens
    assert own.decoder.embed.tokens is not own.encoder.embed.tokens
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters()) == VOCAB * 16


def test_what_does_not_belong_together_is_refused() -> None:
    decoder, alone = tiny(), encoder(spec.States())
    for call, said in (
        (lambda: decoder(IDS, IDS), "a target is for a model with encoder and decoder"),
        (lambda: decoder(IDS, segments=IDS), "has no segments"),
        (lambda: decoder.encode(IDS), "has no encoder"),
        (lambda: alone(IDS, cache=alone.new_cache()), "can't be fed step by step"),
        (lambda: alone.logits(torch.randn(1, 16)), "head is States: it does not continue a text"),
        (lambda: Transformer(two_stacks())(IDS, [[1] * 10] * 2), "10 tokens is longer than this model's 9"),
    ):
        with pytest.raises((InputError, ConfigError), match=said):
            call()


def test_the_weights_of_one_block_in_all_layers() -> None:
    block = spec.Block(spec.Attention(4, 2), spec.Gated(24), spec.RMS())
    model = Transformer(spec.Model(VOCAB, 16, spec.Stack((block,), 3, shared=True))).eval()
    assert len(model.decoder.blocks) == 1
    unrolled = Transformer(spec.Model(VOCAB, 16, spec.Stack((block,), 3))).eval()
    unrolled.decoder.embed.load_state_dict(model.decoder.embed.state_dict())
    for layer in unrolled.decoder.blocks:
        layer.load_state_dict(model.decoder.blocks[0].state_dict())
    torch.testing.assert_close(model(IDS), unrolled(IDS))
    cache = model.new_cache()
    assert len(cache.layers) == 3
    steps = [model(IDS[:, i : i + 1], cache=cache) for i in range(3)]
    torch.testing.assert_close(torch.cat(steps, 1), model(IDS).detach())


def test_one_position_scheme_for_all_layers() -> None:
    block = spec.Block(spec.Attention(4, 2), spec.Gated(24), spec.RMS())
    position = spec.RelativeBias(8, 6)
    model = Transformer(spec.Model(VOCAB, 16, spec.Stack((block,), 3, position=position))).eval()
    assert len({id(layer.mixer.position) for layer in model.decoder.blocks}) == 1
    assert [name for name, _ in model.named_parameters() if "position" in name] == ["decoder.position.weight"]
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(IDS), model(IDS))
        assert same.decoder.blocks[2].mixer.position is same.decoder.position


def test_segments_in_the_form_of_the_ids() -> None:
    model = encoder(spec.States(), segments=2)
    kinds = torch.tensor([[0, 0, 1], [0, 1, 1]])
    one, two = model(IDS, segments=kinds), model(IDS.tolist(), segments=kinds.tolist())
    torch.testing.assert_close(list(one), two)
    assert not torch.allclose(one, model(IDS))
    with pytest.raises(InputError, match=r"segments must have the lengths of the ids, \[3, 3\], got \[3, 2\]"):
        model(IDS, segments=[[0, 0, 1], [0, 1]])


def test_one_answer_a_sequence_at_the_edge() -> None:
    model = encoder(spec.Classify(("a", "b", "c")))
    assert model(IDS).shape == (2, 3)
    assert [tuple(x.shape) for x in model([[1, 2, 3], [4]])] == [(3,), (3,)]
    pair = encoder(spec.Heads((spec.MaskedLM(spec.LayerNorm()), spec.Classify(("a", "b")))))
    assert [tuple(x.shape) for x in pair(IDS)] == [(2, 3, VOCAB), (2, 2)]


def test_segments_are_of_the_stack_that_reads_them() -> None:
    """With a cache the ids are the decoder's, which tells no kinds apart."""
    whole = two_stacks()
    assert whole.encoder is not None
    kinds = dataclasses.replace(whole.encoder, embed=dataclasses.replace(whole.encoder.embed, segments=2))
    model = Transformer(dataclasses.replace(whole, encoder=kinds)).eval()
    assert model(IDS, segments=torch.ones_like(IDS)).shape == (2, 3, VOCAB)
    cache = model.new_cache(memory=model.encode(IDS, segments=torch.ones_like(IDS)))
    with pytest.raises(InputError, match="has no segments"):
        model(IDS, cache=cache, segments=torch.ones_like(IDS))


@pytest.mark.parametrize(
    ("dtype", "packed", "wish", "held"),
    [
        (torch.float32, False, None, None),
        (torch.bfloat16, False, None, None),
        (torch.float32, True, None, torch.bfloat16),
        (torch.float32, True, torch.float32, torch.float32),
        (torch.float32, False, torch.bfloat16, torch.bfloat16),
        (torch.float16, True, None, None),  # as small, and more precise
        (torch.bfloat16, True, None, None),
    ],
)
def test_what_a_cache_holds_keys_in(
    dtype: torch.dtype, packed: bool, wish: torch.dtype | None, held: torch.dtype | None
) -> None:
    """Of packed weights 16 bits, unless it is told otherwise; else what the model computes."""
    mixer = spec.Attention(4, 2, head_dim=8)
    block = spec.Block(mixer, spec.Plain(32), spec.RMS())
    model = Transformer(spec.Model(VOCAB, 16, spec.Stack((block,), 2))).eval().to(dtype)
    if packed:
        down = model.decoder.blocks[1].mlp.down
        del down.weight
        down.weight = Packed(torch.zeros(16, 20, dtype=torch.uint8), "Q4_1", dtype)
    cache = model.new_cache(dtype=wish)
    assert cache.dtype == held
    model(IDS, cache=cache)
    assert [layer.k.dtype for layer in cache.layers] == [held or dtype] * 2
