"""What a model costs, counted from its spec, equals what the model itself turns out to hold."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qkv import count, spec
from qkv.errors import ConfigError, InputError
from qkv.families import family
from qkv.load.describe import describe
from qkv.nn.stack import Transformer
from qkv.spec import RMS, Attention, Block, Gated, LayerNorm, Learned, LMHead, Model, Plain, Rotary, Stack, Window

LLAMA_70B = Path(__file__).parent / "data" / "llama-2-70b" / "config.json"

GPT2 = Model(
    vocab=50257,
    dim=768,
    decoder=Stack(
        (Block(Attention(12, 12, qkv_bias=True, out_bias=True), Plain(3072, "gelu_tanh", bias=True), LayerNorm()),),
        layers=12,
        norm=LayerNorm(),
        embed=spec.Embed(position=Learned(1024)),
    ),
)
SMOLLM2 = Model(
    vocab=49152,
    dim=576,
    decoder=Stack((Block(Attention(9, 3, position=Rotary()), Gated(1536, "silu"), RMS()),), layers=30, norm=RMS()),
)


def llama_70b() -> Model:
    return describe(LLAMA_70B).spec


def all_specs() -> dict[str, Model]:
    out = {}
    for name in family.names():
        known = family.find(name)
        for variant, change in {"tiny": {}, **known.variants}.items():
            out[f"{name}: {variant}"] = known.spec({**known.tiny, **change})
    return out


SPECS = all_specs()


def on_meta(model: Model) -> Transformer:
    with torch.device("meta"):
        return Transformer(model)


@pytest.mark.parametrize("name", SPECS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    built = on_meta(SPECS[name])
    roles = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    for path, p in built.named_parameters():
        places = (
            *(("norm", "norms"), ("after", "norms"), ("embed", "embedding")),
            *(("mixer", "attention"), ("cross", "attention"), ("position", "attention"), ("mlp", "mlp")),
        )
        roles[next((role for part, role in places if part in path), "head")] += p.numel()
    assert count.parameters(SPECS[name]) == sum(p.numel() for p in built.parameters())
    assert count.parameters_by_part(SPECS[name]) == roles


@pytest.mark.parametrize("name", [name for name, model in SPECS.items() if model.decoder])
def test_the_cache_is_as_large_as_counted(name: str) -> None:
    model = SPECS[name]
    built = Transformer(model)
    for length in (5, model.context or 64):
        source = torch.ones(2, length, dtype=torch.long)
        cache = built.new_cache(length, memory=built.encode(source) if model.encoder else None)
        built(torch.ones(2, 3, dtype=torch.long), cache=cache)
        assert cache.nbytes == count.cache_bytes(model, length, batch=2, bytes=4)


def test_known_sizes() -> None:
    assert count.parameters(GPT2) == 124_439_808
    assert count.parameters(SMOLLM2) == 134_515_008
    assert count.parameters(llama_70b()) == 68_976_648_192


def test_llama_2_70b_caches_320_kib_a_token_and_would_cache_2_5_mib() -> None:
    model = llama_70b()
    assert count.kv_bytes_per_token(model) == 320 * 1024
    assert count.kv_bytes_per_token(count.multi_head(model)) == 2.5 * 1024**2
    assert count.kv_bytes_per_token(model, bytes=4) == 640 * 1024
    assert count.cache_bytes(model, 4096, batch=3) == 3 * 4096 * 320 * 1024


def test_memory_is_weights_and_cache() -> None:
    memory = count.memory(SMOLLM2, batch=4, context=100, bytes=2)
    assert memory == count.Memory(2 * 134_515_008, 4 * 100 * 2 * 30 * 3 * 64 * 2)
    assert memory.total == memory.weights + memory.cache


def windowed(size: int) -> Model:
    (block,) = SMOLLM2.decoder.blocks
    local = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, mask=Window(size)))
    return dataclasses.replace(SMOLLM2, decoder=dataclasses.replace(SMOLLM2.decoder, blocks=(local, block)))


def test_a_window_holds_at_most_its_size() -> None:
    half = count.cache_bytes(SMOLLM2, 100) // 2
    assert count.cache_bytes(windowed(10), 100) == half + half // 10
    assert count.cache_bytes(windowed(100), 100) == count.cache_bytes(windowed(1000), 100) == 2 * half


@pytest.mark.parametrize("name", SPECS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """torch's counter sees each matrix product; n tokens at once take every product with all n keys. What is computed
    once a sequence is no token's."""
    model = SPECS[name]
    if isinstance(model.head, spec.Classify | spec.Heads):
        model = dataclasses.replace(model, head=spec.States())
    n = min([b.mixer.mask.size for b in model.last if isinstance(b.mixer.mask, Window)], default=20)
    ids = torch.ones(1, n, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Transformer(model)(ids, ids if len(model.stacks) == 2 else None)
    assert counter.get_total_flops() == n * count.flops_per_token(model, n)


def test_flops_stop_growing_at_the_window() -> None:
    rise = [count.flops_per_token(windowed(10), n + 1) - count.flops_per_token(windowed(10), n) for n in (9, 10)]
    assert rise == [30 * 4 * 9 * 64, 15 * 4 * 9 * 64]


# --- parts of one's own ---


def test_a_part_without_a_price_is_an_error_and_with_one_is_counted() -> None:
    @dataclass(frozen=True)
    class Swap(spec.MLP):
        """dim → dim."""

    model = dataclasses.replace(SMOLLM2, decoder=Stack((model_block(Swap(1)),), layers=2), head=LMHead(tied=False))
    with pytest.raises(ConfigError, match=r"nothing says what Swap costs; register it with @qkv\.count\.costs"):
        count.parameters(model)
    before = count.parameters_by_part(dataclasses.replace(model, decoder=Stack((model_block(Gated(1)),), layers=2)))

    @count.costs(Swap)
    def _(mlp: Swap, dim: int) -> count.Cost:
        return count.Cost(weights=dim * dim, products=dim * dim)

    assert count.parameters_by_part(model) == {**before, "mlp": 2 * 576 * 576}


def model_block(mlp: spec.MLP) -> Block:
    return Block(Attention(9, 3), mlp, RMS())


def test_wrong_numbers_are_named() -> None:
    for wrong in (0, -1, 1.5, True, "8"):
        with pytest.raises(InputError, match="length must be a whole number"):
            count.cache_bytes(SMOLLM2, wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="batch must be a whole number"):
            count.memory(SMOLLM2, batch=wrong, context=8)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="context must be a whole number"):
            count.flops_per_token(SMOLLM2, context=wrong)  # type: ignore[arg-type]


def test_counting_needs_no_torch() -> None:
    code = "import qkv.count, qkv.specfile, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
