"""The whole model at its edges: what it takes, what it gives, and what a module must be able to do."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from qkv import spec
from qkv.errors import InputError
from qkv.nn.attention import Attention
from qkv.nn.batch import Batch
from qkv.nn.cache import Stream
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
    return spec.Model(VOCAB, 16, stack, spec.LMHead(tied=place == "pre", bias=True, softcap=9.0))


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
