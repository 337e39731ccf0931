"""A model's step by the native library: what it takes, what it leaves to torch and why, and that it is the model's own.

tests/families/test_native_step.py holds it to torch for every family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qkv import spec
from qkv.errors import InputError
from qkv.generate.decode import decode
from qkv.generate.settings import Settings
from qkv.generate.step import Reader
from qkv.look.record import record
from qkv.nn import native_step
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache, Contiguous
from qkv.nn.linear import Linear
from qkv.nn.lower import LEAST_ANGLES, NotServed
from qkv.nn.native_step import FEW, NativeStep
from qkv.nn.packed import Packed
from qkv.nn.stack import Transformer
from tests.kernels.test_dequantize import random_blocks
from tests.tiny import VOCAB, tiny, tiny_spec

MIXERS: dict[str, spec.Attention] = {
    "rotary": spec.Attention(4, 2, position=spec.Rotary()),
    "interleaved, in part": spec.Attention(2, 2, position=spec.Rotary(interleaved=True, dims=4)),
    "no position": spec.Attention(4, 1),
    "alibi": spec.Attention(3, 3, head_dim=8, position=spec.Alibi()),
    "biases": spec.Attention(4, 2, qkv_bias=True, out_bias=True, position=spec.Rotary()),
    "normed, capped": spec.Attention(4, 2, qk_norm=spec.RMS(), softcap=2.0, scale=0.7, position=spec.Rotary()),
    "layer norms": spec.Attention(4, 4, qk_norm=spec.LayerNorm()),
}
STEPS = ([[3], [7]], [[1, 2, 3], [9]], [[4], [5, 6, 8, 2, 1]])


def own(model: Transformer, cache: Cache, chunks: list[list[int]]) -> Tensor:
    """The model's own logits of all tokens."""
    stream, batch = model.batch(chunks, cache=cache)
    with torch.no_grad():
        return model.logits(model.states(stream, batch, cache))


def lowered(step: NativeStep, cache: Cache, chunks: list[list[int]]) -> Tensor | None:
    stream, batch = step.model.batch(chunks, cache=cache)
    if step.refuses(batch, cache) is not None:
        return None
    return step(stream.tolist(), batch, cache, range(len(stream)))


def same(model: Transformer, within: float = 1e-4, steps: Any = STEPS) -> None:
    step, caches = NativeStep(model), (model.new_cache(), model.new_cache())
    for chunks in steps:
        ours, theirs = lowered(step, caches[0], chunks), own(model, caches[1], chunks)
        assert ours is not None
        assert ours.dtype == torch.float32
        assert (ours - theirs.float()).abs().max() <= within * theirs.float().abs().max()


def refused(model: Transformer, why: str) -> None:
    with pytest.raises(NotServed, match=why):
        NativeStep(model)
    read = Reader(model)
    assert read.native is None
    assert read.how.startswith("torch (")


@pytest.mark.parametrize("name", MIXERS)
def test_attention(name: str) -> None:
    same(tiny(MIXERS[name]))


@pytest.mark.parametrize("place", ["pre", "post", "sandwich", "parallel"])
@pytest.mark.parametrize("mlp", [spec.Plain(24, "gelu", bias=True), spec.Gated(24, "silu"), spec.Plain(40, "relu2")])
@pytest.mark.parametrize("norm", [spec.RMS(), spec.RMS(one_plus=True), spec.LayerNorm(), spec.LayerNorm(bias=False)])
def test_blocks(place: Any, mlp: Any, norm: Any) -> None:
    block = spec.Block(spec.Attention(4, 2, position=spec.Rotary()), mlp, norm, place)
    same(randomized(spec.Model(VOCAB, 16, spec.Stack((block,), 2, norm=norm if place != "post" else None))))


def randomized(model: spec.Model) -> Transformer:
    made = Transformer(model).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return made


@pytest.mark.parametrize("embed", [
    spec.Embed(spec.Learned(12, 2)), spec.Embed(scale=4.0), spec.Embed(norm=spec.LayerNorm()),
    spec.Embed(spec.Learned(12), scale=3.0, norm=spec.RMS()),
])  # fmt: skip
@pytest.mark.parametrize("head", [
    spec.LMHead(), spec.LMHead(tied=False, bias=True), spec.LMHead(scale=0.1, softcap=2.0), spec.LMHead(bias=True),
])  # fmt: skip
def test_embeddings_and_heads(embed: spec.Embed, head: spec.LMHead) -> None:
    block = spec.Block(spec.Attention(4, 2), spec.Gated(24, "silu"), spec.RMS())
    same(randomized(spec.Model(VOCAB, 16, spec.Stack((block,), 2, norm=spec.RMS(), embed=embed), head=head)))


def test_layers_that_share_weights_have_keys_of_their_own() -> None:
    block = spec.Block(spec.Attention(4, 2, position=spec.Rotary()), spec.Gated(24, "silu"), spec.RMS())
    model = randomized(spec.Model(VOCAB, 16, spec.Stack((block, block), 5, norm=spec.RMS(), shared=True)))
    assert len(NativeStep(model).plans[8].attentions) == 5
    same(model)


def test_half_as_many_bits() -> None:
    for name in ("rotary", "normed, capped"):
        same(tiny(MIXERS[name]).bfloat16(), within=0.05)


def test_a_cache_that_grows_changes_hands_and_goes_back() -> None:
    model, text = tiny(), [i * 7 % VOCAB for i in range(LEAST_ANGLES + 70)]
    step, caches = NativeStep(model), (model.new_cache(), model.new_cache())
    for first in range(0, len(text), FEW):
        chunk = text[first : first + FEW]
        ours, theirs = lowered(step, caches[0], [chunk]), own(model, caches[1], [chunk])
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for cache in caches:
        cache.truncate([100])
        cache.select([0, 0])
    torch.testing.assert_close(
        lowered(step, caches[0], [[3], [4, 5]]), own(model, caches[1], [[3], [4, 5]]), atol=1e-4, rtol=1e-4
    )
    lowered(step, caches[1], [[3], [4]])  # what torch has filled goes on natively, and the other way round
    own(model, caches[0], [[3], [4]])
    torch.testing.assert_close(
        lowered(step, caches[0], [[8], [8]]), own(model, caches[1], [[8], [8]]), atol=1e-4, rtol=1e-4
    )
    fixed = model.new_cache(9)
    lowered(step, fixed, [[1, 2, 3]])
    with pytest.raises(InputError, match="don't fit this cache of 9"):
        lowered(step, fixed, [[1] * 7])
    assert fixed.lengths == [3]


def test_caches_do_not_mix() -> None:
    model = tiny()
    step, one, other = NativeStep(model), model.new_cache(), model.new_cache()
    for token in (1, 5, 9):
        lowered(step, one, [[token]])
        lowered(step, other, [[token + 1], [token + 2]])
    torch.testing.assert_close(lowered(step, one, [[4]]), own(model, model.new_cache(), [[1, 5, 9, 4]])[-1:])
    exact = torch.stack([own(model, model.new_cache(), [ids])[-1] for ids in ([2, 6, 10, 4], [3, 7, 11, 4])])
    torch.testing.assert_close(lowered(step, other, [[4], [4]]), exact)


def test_a_cache_of_another_precision_goes_on() -> None:
    """Of float16, which the library's attention doesn't keep, with torch."""
    for dtype, served in ((torch.float16, False), (torch.bfloat16, True), (torch.float32, True)):
        for first in (True, False):
            model = tiny()
            caches = model.new_cache(dtype=dtype), model.new_cache(dtype=dtype)
            for cache in () if first else caches:
                own(model, cache, [[1, 2, 3]])
            ours = lowered(NativeStep(model), caches[0], [[4, 5]])
            theirs = own(model, caches[1], [[4, 5]])
            assert (ours is not None) is served
            within = 1e-4 if dtype == torch.float32 else 0.02  # a key may be rounded the other way
            assert ours is None or (ours - theirs).norm() <= within * theirs.norm()


def test_many_tokens_of_plain_weights_are_for_torch_and_nothing_has_happened() -> None:
    model, cache = tiny(), None
    step, cache = NativeStep(model), model.new_cache()
    assert lowered(step, cache, [[1] * (FEW + 1)]) is None
    assert cache.lengths == []
    assert lowered(step, cache, [[1] * FEW]) is not None


def packed(kind: str = "Q4_1", **changes: Any) -> Transformer:
    """A model all of whose matrices are packed."""
    attention = spec.Attention(4, 2, position=spec.Rotary())
    block = spec.Block(attention, spec.Gated(64, "silu"), spec.RMS())
    model = randomized(spec.Model(VOCAB, 32, spec.Stack((block,), 2, norm=spec.RMS()), **changes))
    for part in list(model.modules()):
        if isinstance(part, nn.Linear | nn.Embedding):
            rows, columns = part.weight.shape
            del part.weight
            raw = torch.from_numpy(random_blocks(kind, rows, columns // 32, rows + columns, 0.02))
            part.weight = Packed(raw, kind)
    return model


def test_packed_weights_serve_any_number_of_tokens() -> None:
    model = packed()
    step = NativeStep(model)
    assert step.most_rows is None
    same(model, within=0.02, steps=[[[1, 2, 3] * 10, [5]], [[4], [7] * 40]])


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16], ids=str)
def test_packed_weights_keep_keys_in_16_bits_unless_told_otherwise(dtype: torch.dtype | None) -> None:
    """The library and torch go on with what the other has kept."""
    model = packed()
    step, caches = NativeStep(model), [model.new_cache(dtype=dtype) for _ in range(2)]
    for turn, chunks in enumerate([[[1, 2, 3], [5]], [[4], [7]], [[8, 9], [3, 2, 1]], [[6], [6]]]):
        ours = lowered(step, caches[turn % 2], chunks)
        theirs = own(model, caches[1 - turn % 2], chunks)
        assert ours is not None
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()
    for cache in caches:
        for kept in cache.layers:
            assert isinstance(kept, Contiguous)
            assert kept.k is not None
            assert kept.k.dtype == (dtype or torch.bfloat16)
    assert caches[0].nbytes == caches[1].nbytes == 2 * 2 * 2 * 64 * 16 * (dtype or torch.bfloat16).itemsize


def test_a_plain_table_of_which_rows_are_read_is_no_product() -> None:
    model = packed(head=spec.LMHead(tied=False))
    del model.head.weight
    model.head.weight = Packed(torch.from_numpy(random_blocks("Q8_0", VOCAB, 1, 1, 0.02)), "Q8_0")
    tokens = model.decoder.embed.tokens  # type: ignore[union-attr]
    del tokens.weight
    tokens.weight = nn.Parameter(torch.randn(VOCAB, 32))
    assert NativeStep(model).most_rows is None
    same(model, within=0.02, steps=[[[1, 2, 3] * 10, [5]]])


def test_packed_weights_without_a_native_product_are_for_torch() -> None:
    refused(packed("Q5_0"), "Q5_0 weights have no native product")


def test_without_the_library_there_is_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_step, "native", lambda: None)
    monkeypatch.setattr(native_step, "reason", lambda: "no compiler")
    refused(tiny(), "no compiler")


# --- what is left to torch -------------------------------------------------------------------------------------------


def hook(model: Transformer) -> None:
    model.decoder.blocks[1].mlp.up.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]


def pre_hook(model: Transformer) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def patched(model: Transformer) -> None:
    mlp: Any = model.decoder.blocks[0].mlp  # type: ignore[union-attr]
    mlp.forward = lambda x: x * 0


def patched_inside(model: Transformer) -> None:
    mixer: Any = model.decoder.blocks[0].mixer  # type: ignore[union-attr]
    mixer.queries = lambda x: x


def patched_states(model: Transformer) -> None:
    model.states = model.states  # type: ignore[method-assign]


def adapted(model: Transformer) -> None:
    class Adapter(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.weight, self.bias, self.out_features = inner, inner.weight, inner.bias, 24

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 1  # type: ignore[no-any-return]

    mlp: Any = model.decoder.blocks[1].mlp  # type: ignore[union-attr]
    mlp.up = Adapter(mlp.up)


def subclassed(model: Transformer) -> None:
    class Own(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model.decoder.blocks[1].mixer.out.__class__ = Own  # type: ignore[union-attr]


def parametrized(model: Transformer) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    parametrize.register_parametrization(model.decoder.norm, "weight", Twice())  # type: ignore[union-attr]


def activated(model: Transformer) -> None:
    model.decoder.blocks[0].mlp.activation = torch.sin  # type: ignore[union-attr]


def unlike(model: Transformer) -> None:
    model.decoder.blocks[0].mixer.q_norm = nn.Identity()  # type: ignore[union-attr]


CHANGES: dict[str, tuple[Callable[[Transformer], object], str]] = {
    "hook": (hook, "decoder.blocks.1.mlp.up is hooked or patched"),
    "pre-hook": (pre_hook, "the model is hooked or patched"),
    "forward": (patched, "decoder.blocks.0.mlp is hooked or patched"),
    "another method": (patched_inside, "decoder.blocks.0.mixer is hooked or patched"),
    "states": (patched_states, "the model is hooked or patched"),
    "adapter": (adapted, "Adapter in the place of Linear"),
    "subclass": (subclassed, "Own in the place of Linear"),
    "parametrization": (parametrized, "the norm ParametrizedRMSNorm"),
    "activation": (activated, "an activation that was replaced"),
    "one norm of two": (unlike, "queries and keys with different norms"),
    "half": (lambda model: model.half(), "float16 on cpu"),
    "double": (lambda model: model.double(), "float64 on cpu"),
    "double in part": (lambda model: model.decoder.blocks[1].mlp.double(), "float64 weights on cpu"),  # type: ignore[union-attr]
    "another device": (lambda model: model.to("meta"), "float32 on meta"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_from_outside_is_for_torch(change: str) -> None:
    model = tiny(spec.Attention(4, 2, qk_norm=spec.RMS()))
    NativeStep(model)
    CHANGES[change][0](model)
    refused(model, CHANGES[change][1])


SPECS = {
    "dynamic NTK": (
        tiny_spec(spec.Attention(4, 2, position=spec.Rotary(scaling=spec.DynamicNTKScaling(2.0, 8)))),
        "dynamic NTK scaling",
    ),
    "buckets": (tiny_spec(spec.Attention(4, 2), position=spec.RelativeBias(8, 6)), "RelativeBias"),
    "mask": (tiny_spec(spec.Attention(4, 2, mask=spec.Full())), "the mask Full"),
    "sines": (tiny_spec(embed=spec.Embed(spec.Sinusoidal())), "the position Sinusoidal"),
    "projection": (
        replace(
            tiny_spec(), decoder=replace(tiny_spec().decoder, embed=spec.Embed(width=8)), head=spec.LMHead(tied=False)
        ),
        "a projection",
    ),
    "segments": (tiny_spec(embed=spec.Embed(segments=2)), "its embedding"),
}


@pytest.mark.parametrize("name", SPECS)
def test_parts_that_it_does_not_know_are_for_torch(name: str) -> None:
    refused(Transformer(SPECS[name][0]).eval(), SPECS[name][1])


def test_a_model_with_steps_of_its_own_is_for_torch() -> None:
    class Own(Transformer):
        def states(self, *given: Any, **named: Any) -> Tensor:
            return super().states(*given, **named) * 2

    refused(Own(tiny_spec()).eval(), "Own has steps of its own")


def test_while_it_is_recorded_torch_takes_the_steps() -> None:
    model = tiny()
    with record(model) as tape:
        refused(model, "decoder is hooked or patched")
        Reader(model)([[1, 2, 3]], model.new_cache(), [1])
    assert [tuple(layer.shape) for layer in tape.attention] == [(4, 3, 3)] * 2  # type: ignore[union-attr]
    NativeStep(model)
    mixer: Any = model.decoder.blocks[1].mixer  # type: ignore[union-attr]
    mixer.attend = lambda q, *_, **__: q
    refused(model, "decoder.blocks.1.mixer is being recorded")


def test_a_window_is_native_until_something_is_forgotten() -> None:
    model = tiny(spec.Attention(4, 2, mask=spec.Window(6), position=spec.Rotary()), spec.Attention(4, 2))
    step, short, long, text = NativeStep(model), model.new_cache(6), model.new_cache(), [[1, 2, 3, 4, 5, 6]]
    assert all(isinstance(kept, Contiguous) for kept in short.layers)
    torch.testing.assert_close(lowered(step, short, text), own(model, model.new_cache(), text), atol=1e-4, rtol=1e-4)
    assert lowered(step, long, [[1, 2, 3]]) is None
    assert long.lengths == []


# --- around it -------------------------------------------------------------------------------------------------------


def answer(model: Transformer, prompt: list[int], **wish: Any) -> list[int]:
    return [step.choice.token for step in decode(model, [prompt], [Settings(max_tokens=6, **wish)])]


def test_weights_that_change_are_seen_by_the_next_answer() -> None:
    torch.manual_seed(0)
    model = tiny()
    before = answer(model, [1, 2, 3])
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    after = answer(model, [1, 2, 3])
    assert before != after
    hook(model)
    assert answer(model, [1, 2, 3]) == after  # torch's, which is the same


def test_in_training_an_answer_has_no_dropout() -> None:
    block = spec.Block(spec.Attention(4, 2, dropout=0.5), spec.Gated(24, "silu", dropout=0.5), spec.RMS(), dropout=0.5)
    stack = spec.Stack((block,), 2, spec.RMS(), spec.Embed(dropout=0.5))
    model = randomized(spec.Model(VOCAB, 16, stack)).train()
    read = Reader(model)
    assert read.native is not None
    logits = read([[1, 2, 3]], model.new_cache(), [3])
    assert model.training
    torch.testing.assert_close(logits, own(model.eval(), model.new_cache(), [[1, 2, 3]]), atol=1e-4, rtol=1e-4)
    assert not logits.requires_grad


def test_more_tokens_than_learned_positions_are_an_error() -> None:
    model = tiny(spec.Attention(4, 2), embed=spec.Embed(spec.Learned(5)))
    step, cache = NativeStep(model), model.new_cache()
    assert lowered(step, cache, [[1, 2, 3, 4, 5]]) is not None
    with pytest.raises(InputError, match=r"6 tokens is longer than this model's 5 learned positions"):
        lowered(step, cache, [[6]])
    assert cache.lengths == [5]


def test_only_the_wanted_rows_come_back() -> None:
    model = tiny()
    step, cache = NativeStep(model), model.new_cache()
    batch = Batch([3, 1], [0, 0], torch.device("cpu"))
    logits = step([1, 2, 3, 4], batch, cache, [3, 0])
    whole = own(model, model.new_cache(), [[1, 2, 3], [4]])
    torch.testing.assert_close(logits, whole[[3, 0]], atol=1e-4, rtol=1e-4)
    none = step([1, 1], Batch([1, 1], [3, 1], torch.device("cpu")), cache, [])
    assert none.shape == (0, VOCAB)
    assert cache.lengths == [4, 2]
