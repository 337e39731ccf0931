"""Attention as a module, against torch's own."""

import pytest
import torch

from qkv import spec
from qkv.nn import norm, position  # noqa: F401  (importing registers their parts)
from qkv.nn.attention import Attention, CrossAttention
from qkv.nn.batch import Batch
from qkv.nn.cache import Stream
from qkv.nn.parts import build

BATCH = Batch([5, 2, 7], [0, 0, 0], torch.device("cpu"))


def made(**how: object) -> Attention:
    part = build(spec.Attention(**{"heads": 4, "kv_heads": 4, **how}), 16)
    assert isinstance(part, Attention)
    for weight in part.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return part


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", [spec.Full(), spec.Causal()], ids=repr)
def test_multi_head_is_torchs(mask: spec.Mask, bias: bool) -> None:
    own = made(mask=mask, qkv_bias=bias, out_bias=bias)
    theirs = torch.nn.MultiheadAttention(16, 4, bias=bias, batch_first=True)
    kinds = ("weight", "bias") if bias else ("weight",)
    theirs.load_state_dict(
        {f"in_proj_{kind}": torch.cat([getattr(layer, kind) for layer in (own.q, own.k, own.v)]) for kind in kinds}
        | {f"out_proj.{kind}": getattr(own.out, kind) for kind in kinds}
    )
    x = torch.randn(14, 16)
    for row, out in zip(BATCH.split(x), BATCH.split(own(x, BATCH, Stream())), strict=True):
        ahead = torch.ones(len(row), len(row), dtype=torch.bool).triu(1) if mask == spec.Causal() else None
        torch.testing.assert_close(out[None], theirs(row[None], row[None], row[None], attn_mask=ahead)[0])


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_are_multi_head_with_keys_and_values_repeated(kv_heads: int) -> None:
    grouped, full = made(kv_heads=kv_heads, qkv_bias=True), made(qkv_bias=True)
    state = grouped.state_dict()
    for name in ("k.weight", "v.weight", "k.bias", "v.bias"):
        heads = state[name].unflatten(0, (kv_heads, 4))
        state[name] = heads.repeat_interleave(4 // kv_heads, 0).flatten(0, 1)
    full.load_state_dict(state)
    x = torch.randn(14, 16)
    torch.testing.assert_close(grouped(x, BATCH, Stream()), full(x, BATCH, Stream()))


def test_queries_and_keys_are_normed_by_head_before_they_are_turned() -> None:
    rotary = spec.Rotary()
    part = made(kv_heads=2, qk_norm=spec.RMS(), position=rotary)
    x, batch = torch.randn(14, 16), Batch([7, 7], [0, 0], torch.device("cpu"))
    q, k = (layer(x).view(14, -1, 4) for layer in (part.q, part.k))
    q, k = (n(y) for n, y in ((part.q_norm, q), (part.k_norm, k)))
    assert part.q_norm.weight.shape == part.k_norm.weight.shape == (4,)
    plain = made(kv_heads=2, position=rotary)
    seen = {}

    def look(query: torch.Tensor, keys: object, *args: object, **how: object) -> torch.Tensor:
        seen["q"], seen["k"] = query, keys.k  # type: ignore[attr-defined]
        return torch.zeros(14, 4, 4)

    part.attend = look  # type: ignore[assignment]
    part(x, batch, Stream())
    turned = plain.position.turn(q, k, batch)
    assert torch.equal(seen["q"], turned[0])
    assert torch.equal(seen["k"], batch.grid(turned[1]).transpose(1, 2))


@pytest.mark.parametrize(("how", "scale"), [({}, 4**-0.5), ({"head_dim": 8}, 8**-0.5), ({"scale": 0.3}, 0.3)])
def test_scale_and_head_width(how: dict[str, float], scale: float) -> None:
    part = made(**how)
    assert part.scale == scale
    assert part.q.weight.shape == part.k.weight.shape == (4 * int(how.get("head_dim", 4)), 16)
    assert part(torch.randn(14, 16), BATCH, Stream()).shape == (14, 16)


def test_dropout_in_training_only() -> None:
    part, x = made(dropout=0.5), torch.randn(14, 16)
    part.eval()
    assert torch.equal(part(x, BATCH, Stream()), part(x, BATCH, Stream()))
    part.train()
    assert not torch.equal(part(x, BATCH, Stream()), part(x, BATCH, Stream()))


def test_cross_attention_is_torchs() -> None:
    own = CrossAttention(spec.Attention(4, 4, mask=spec.Full(), qkv_bias=True, out_bias=True), 16)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {f"in_proj_{k}": torch.cat([getattr(layer, k) for layer in (own.q, own.k, own.v)]) for k in ("weight", "bias")}
        | {f"out_proj.{k}": getattr(own.out, k) for k in ("weight", "bias")}
    )
    source = Batch([3, 8, 1], [0, 0, 0], torch.device("cpu"))
    x, states = torch.randn(14, 16), torch.randn(12, 16)
    out = own(x, BATCH, own.remember(states, source))
    for row, seen, found in zip(BATCH.split(x), source.split(states), BATCH.split(out), strict=True):
        torch.testing.assert_close(found[None], theirs(row[None], seen[None], seen[None])[0])
