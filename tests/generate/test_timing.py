"""Bytes and seconds: counted by hand on a tiny model."""

import time
from dataclasses import replace

import pytest
import torch

from qkv import spec
from qkv.generate.timing import Timing, Traffic, Watch, peak_memory
from qkv.nn.cache import Cache
from qkv.nn.stack import Transformer
from tests.generate.tiny import VOCAB, model_spec, pair_spec

BLOCK = 4 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32)  # q and out, k and v, the MLP, two norms; float32
KEYS = 2 * 2 * 8 * 4  # keys and values of 2 heads of 8 float32, a layer and token


def test_a_step_reads_every_weight_once_and_the_keys_held() -> None:
    traffic = Traffic(Transformer(model_spec()))
    weights = 2 * BLOCK + 4 * 32 + 4 * VOCAB * 32  # the embedding is the head
    assert traffic.step([]) == weights
    assert traffic.step([10, 3]) == weights + 13 * 2 * KEYS


def test_an_embedding_that_is_not_the_head_is_only_looked_up() -> None:
    model = Transformer(model_spec(head=spec.LMHead(tied=False), embed=spec.Embed(spec.Learned(64))))
    assert Traffic(model).step([]) == 2 * BLOCK + 4 * 32 + 4 * VOCAB * 32


def test_a_window_reads_no_more_than_its_size() -> None:
    traffic = Traffic(Transformer(model_spec(attention={"mask": spec.Window(5)})))
    assert traffic.step([100]) - traffic.step([]) == 5 * 2 * KEYS
    assert traffic.step([3]) - traffic.step([]) == 3 * 2 * KEYS


@pytest.mark.parametrize("kind", ["relative", "learned"])
def test_beside_an_encoder_a_step_reads_the_decoder_and_what_it_looks_at(kind: str) -> None:
    model = Transformer(pair_spec(kind))
    decoder = sum(p.nbytes for p in model.decoder.parameters()) - sum(
        p.nbytes for p in model.decoder.embed.parameters()
    )
    once = sum(p.nbytes for b in model.decoder.blocks for part in (b.cross.k, b.cross.v) for p in part.parameters())
    weights = decoder - once + 4 * VOCAB * 32
    assert Traffic(model).step([]) == weights
    assert Traffic(model).step([10, 3], [5, 6]) == weights + (13 + 11) * 2 * 2 * 32 * 4


def held(*lengths: int, dtype: torch.dtype | None = None) -> Cache:
    """A cache of sequences of so many tokens."""
    cache = Cache([], dtype=dtype)
    cache.lengths = list(lengths)
    return cache


def test_keys_held_in_fewer_bits_are_fewer_bytes() -> None:
    watch = Watch(Transformer(model_spec()))
    for dtype, size in ((None, 4), (torch.float32, 4), (torch.bfloat16, 2)):
        watch.bytes = 0
        watch.start()
        watch.read(held(10, 3, dtype=dtype))
        assert watch.bytes == watch.traffic.step([]) + 13 * 2 * KEYS * size // 4


def test_what_a_consumer_does_between_steps_does_not_count() -> None:
    watch = Watch(Transformer(model_spec()))
    for _ in range(2):
        watch.start()
        watch.read(held(1))
        now = watch.now()
        watch.stop()
        time.sleep(0.05)
    assert 0 < now.prefilled <= now.seconds < 0.05
    assert now.read == 2 * watch.traffic.step([1])


def test_half_precision_is_half_the_bytes() -> None:
    model = Transformer(model_spec())
    full = Traffic(model).step([7])
    assert Traffic(model.bfloat16()).step([7]) * 2 == full


def test_rates() -> None:
    timing = Timing(100, 0.5, 0.6, 20, 2.0, 10**10, None)
    assert timing.to_dict() == {
        "prompt_tokens": 100,
        "prefill_seconds": 0.5,
        "first_token_seconds": 0.6,
        "decode_steps": 20,
        "decode_seconds": 2.0,
        "bytes_read": 10**10,
        "peak_memory": None,
        "prompt_tokens_per_second": 200.0,
        "tokens_per_second": 10.0,
        "bytes_per_token": 5e8,
        "gigabytes_per_second": 5.0,
        "guessed": 0,
        "accepted": 0,
        "step": "",
    }
    one = Timing(100, 0.5, 0.6, 0, 0.0, 0, None)
    assert (one.tokens_per_second, one.bytes_per_token, one.gigabytes_per_second) == (None, None, None)
    guessed = replace(timing, guessed=40, accepted=30)
    assert guessed.decode_tokens == 50
    assert (guessed.tokens_per_second, guessed.bytes_per_token, guessed.gigabytes_per_second) == (25.0, 2e8, 5.0)


def test_it_says_what_computed_the_steps() -> None:
    watch = Watch(Transformer(model_spec()))
    watch.how = "torch (no compiler)"
    watch.start()
    watch.read(held(1))
    now = watch.now()
    assert watch.timing(now, now, 1, 0).step == "torch (no compiler)"


def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**26)
    after = peak_memory(torch.device("cpu"))
    assert before is not None
    assert after is not None
    assert after >= held.nbytes
    assert 2**26 < after < 2**40
