"""A step of the native library gives what the model's own forward gives, for every family that continues a text and
every variant; and packed weights give the same to the bit however a text is cut, batched or ordered."""

from collections.abc import Sequence
from functools import cache as once
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig

from qkv.families.family import find
from qkv.generate.step import Reader
from qkv.load.checkpoint import GgufCheckpoint
from qkv.load.describe import describe
from qkv.load.weights import fill
from qkv.nn.cache import Cache
from qkv.nn.lower import NotServed
from qkv.nn.native_step import NativeStep
from qkv.nn.stack import Transformer
from tests.families.reference import CASES, FIRST, close, generates, randomized, raw
from tests.families.test_gguf import PACKED, write

TORCH = {  # what the native library does not serve: why
    "bart": "PostNormCrossing",
    "marian": "Sinusoidal",
    "mbart": "PreNormCrossing",
    "mt5": "PreNormCrossing",
    "pegasus": "Sinusoidal",
    "t5": "PreNormCrossing",
    "gpt_neox: dynamic": "dynamic NTK",
    "llama: dynamic": "dynamic NTK",
}
SPECS = {one: find(one[0]).spec(raw(*one)) for one in CASES}
ALL = [one for one in CASES if generates(SPECS[one])]


@once
def made(name: str, variant: str) -> Transformer:
    """A model none of whose parts is trivial: no norm is one, no bias zero."""
    torch.manual_seed(0)
    model = Transformer(SPECS[name, variant]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.2))
    return model


def ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(FIRST, 97, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def native(
    step: NativeStep, chunks: Sequence[Sequence[int]], cache: Cache, prompts: Sequence[int] | None = None
) -> Tensor:
    stream, batch = step.model.batch(chunks, cache=cache)
    batch.prompts = prompts
    return step(stream.tolist(), batch, cache, range(len(stream)))


def plainly(model: Transformer, chunks: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    stream, batch = model.batch(chunks, cache=cache)
    with torch.no_grad():
        return model.logits(model.states(stream, batch, cache))


def cache_end(cache: Cache) -> int:
    return max(cache.lengths, default=0)


def windowed(model: Transformer) -> int | None:
    """The length up to which no window hides anything."""
    return min((n for n in (b.mixer.mask.keeps() for b in model.last.blocks) if n is not None), default=None)  # type: ignore[union-attr, operator]


def test_which_families_are_served_and_why_others_are_not() -> None:
    reasons = {}
    for name, variant in ALL:
        try:
            NativeStep(made(name, variant))
        except NotServed as why:
            reasons[name if name in TORCH else f"{name}: {variant}"] = str(why)
    assert set(reasons) == set(TORCH)
    assert all(part in reasons[name] for name, part in TORCH.items()), reasons


SERVED = [(n, v) for n, v in ALL if n not in TORCH and f"{n}: {v}" not in TORCH]


@pytest.mark.parametrize(("name", "variant"), SERVED, ids=[f"{n}: {v}" for n, v in SERVED])
def test_it_gives_the_logits_of_torch(name: str, variant: str) -> None:
    """A token, a chunk, a ragged batch, after a choice of sequences, on and on."""
    model = made(name, variant)
    step, most = NativeStep(model), windowed(model)
    for length in [most] if most is not None else [None, 30]:
        caches = model.new_cache(length), model.new_cache(length)
        for chunks, chosen in (([ids(1), ids(1, 1)], [1, 0, 1]), ([ids(1), ids(5), ids(2)], [2, 1]), ([[9], [7]], [])):
            short = [chunk[: max(1, most // 3)] for chunk in chunks] if most is not None else chunks
            if most is not None and max(cache_end(caches[0]) + len(chunk) for chunk in short) > most:
                break
            close([native(step, short, caches[0])], [plainly(model, short, caches[1])], within=1e-4)
            assert caches[0].lengths == caches[1].lengths
            for cache in caches if chosen else ():
                cache.select(chosen)


WINDOWED = sorted({n for n, v in SERVED if v == "tiny" and windowed(made(n, v)) is not None})


@pytest.mark.parametrize("name", WINDOWED)
def test_beyond_a_window_torch_takes_the_step(name: str) -> None:
    model = made(name, "tiny")
    text, read, cache, found = ids(20), Reader(model), model.new_cache(), []
    for first in (0, 3, 8, 9, 10, 15):
        chunk = text[first : {0: 3, 3: 8, 8: 9, 9: 10, 10: 15, 15: 20}[first]]
        found.append(read([chunk], cache, [len(chunk)]))
    assert "window" in read.how
    with torch.no_grad():
        close([torch.cat(found)], list(model([text])), within=1e-4)


# --- packed ----------------------------------------------------------------------------------------------------------

KINDS = {"Q4_1": ("Q4_1",), "Q8_0": ("Q8_0",), "Q4_K and Q6_K": ("Q4_K", "Q6_K", "Q4_K", "Q5_K", "Q4_0")}
MODELS = {f"{n} {sorted(c)}": (n, c) for n, c in PACKED}


@once
def packed(which: str, kinds: str) -> Transformer:
    name, changes = MODELS[which]
    theirs = randomized(AutoConfig.for_model(name, **{**find(name).tiny, **changes, "max_position_embeddings": 512}))
    with TemporaryDirectory() as folder:
        write(Path(folder) / "m.gguf", theirs, {}, KINDS[kinds])
        described = describe(Path(folder) / "m.gguf")
        with torch.device("meta"):
            model = Transformer(described.spec)
        assert described.gguf is not None
        assert described.family.gguf is not None
        checkpoint = GgufCheckpoint(described.gguf, torch.float32, KINDS[kinds])
        fill(model, described.family.gguf.weights, checkpoint, described.family)
    return model.eval()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 0.02), (None, 0.05)], ids=str)
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("which", MODELS)
def test_packed_models_give_the_logits_of_torch(
    which: str, kinds: str, dtype: torch.dtype | None, within: float
) -> None:
    """A number that lies between two whole ones may be rounded the other way; so may a key of 16 bits, of which these
    models of random weights make ten times as much."""
    model = packed(which, kinds)
    step, caches = NativeStep(model), [model.new_cache(dtype=dtype) for _ in range(2)]
    for chunks in ([ids(1)], [ids(1)], [ids(40)], [ids(3)]):
        ours, theirs = native(step, chunks, caches[0]), plainly(model, chunks, caches[1])
        assert (ours - theirs).norm() <= within * theirs.norm()
        assert torch.isfinite(ours).all()


def alone(model: Transformer, text: list[int], dtype: torch.dtype | None) -> Tensor:
    """One token at a time."""
    step, cache = NativeStep(model), model.new_cache(len(text), dtype=dtype)
    return torch.cat([native(step, [[i]], cache) for i in text])


@settings(max_examples=12)
@given(
    data=st.data(), threads=st.integers(1, 3), room=st.sampled_from([None, 300]),
    dtype=st.sampled_from([None, torch.float32]),
)  # fmt: skip
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("which", [*MODELS][:4:3])
def test_a_text_is_the_same_to_the_bit_however_it_is_read(
    which: str, kinds: str, data: st.DataObject, threads: int, room: int | None, dtype: torch.dtype | None
) -> None:
    """Batched, cut, in any order, taken back and read again."""
    model = packed(which, kinds)
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    texts = [ids(n, i) for i, n in enumerate(lengths)]
    expected = [alone(model, text, dtype) for text in texts]
    order = data.draw(st.permutations(range(len(texts))))
    step, cache = NativeStep(model), model.new_cache(room, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        read = [0] * len(texts)
        while order:
            counts = [data.draw(st.integers(1, min(20, lengths[i] - read[i]))) for i in order]
            logits = native(step, [texts[i][read[i] : read[i] + n] for i, n in zip(order, counts, strict=True)], cache)
            for i, n, mine in zip(order, counts, logits.split(counts), strict=True):
                assert torch.equal(mine, expected[i][read[i] : read[i] + n])
                read[i] += n
            back = [data.draw(st.integers(max(0, read[i] - 2), read[i])) for i in order]
            if data.draw(st.booleans()) and all(back):
                cache.truncate(back)
                read = [back[order.index(i)] if i in order else n for i, n in enumerate(read)]
            going = data.draw(st.permutations([at for at, i in enumerate(order) if read[i] < lengths[i]]))
            if going and [*going] != [*range(len(order))]:
                cache.select(going)
            order = [order[at] for at in going]
    finally:
        torch.set_num_threads(before)


def test_a_long_text_is_the_same_to_the_bit_in_any_chunks() -> None:
    """Over more keys than are taken in one go."""
    which: Any = next(iter(MODELS))
    model, text = packed(which, "Q4_1"), ids(400)
    step, answers = NativeStep(model), []
    for chunk in (400, 150, 7):
        cache = model.new_cache()
        assert cache.dtype == torch.bfloat16
        answers.append(torch.cat([native(step, [text[i : i + chunk]], cache) for i in range(0, 400, chunk)]))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("which", MODELS)
def test_a_prompt_is_the_same_to_the_bit_however_it_is_read(which: str) -> None:
    """Cut, beside others and beside answers; and what follows it is too. It is near what its tokens are in an answer,
    whose products are others where the library has some for prompts."""
    model = packed(which, "Q4_1")
    step, texts = NativeStep(model), [ids(90, 1), ids(90, 2)]
    known = (80, 35)
    whole = []
    for text, prompt in zip(texts, known, strict=True):
        cache = model.new_cache()
        whole.append(torch.cat([native(step, [text[:prompt]], cache, [prompt]), native(step, [text[prompt:]], cache)]))
    for cuts in ([0, 90], [0, 30, 41, 80, 81, 90], [0, 1, 2, 33, 85, 90]):
        cache, found = model.new_cache(), list[Tensor]()
        for start, end in pairwise(cuts):
            prompts = [max(0, min(end, prompt) - start) for prompt in known]
            found.append(native(step, [text[start:end] for text in texts], cache, prompts).unflatten(0, (2, -1)))
        assert torch.equal(torch.cat(found, 1), torch.stack(whole)), cuts
    answer = native(step, [texts[0]], model.new_cache())
    assert (answer - whole[0]).norm() <= 0.25 * answer.norm()  # random weights make much of 8 bits
    assert torch.equal(answer, whole[0]) == (not step.apart)


def test_only_packed_models_without_a_window_read_prompts_apart() -> None:
    for which in MODELS:
        model = packed(which, "Q4_1")
        step = NativeStep(model)
        assert step.apart == (step.library.bulk and windowed(model) is None)
    assert not NativeStep(made("llama", "tiny")).apart


def test_without_a_cache_a_packed_model_says_the_same() -> None:
    """Its keys are rounded as a cache would hold them."""
    which: Any = next(iter(MODELS))
    model, text = packed(which, "Q4_1"), ids(30)
    with torch.no_grad():
        whole = model([text])[0]
    cached = plainly(model, [text], model.new_cache())
    assert torch.equal(whole, cached)
    exact = plainly(model, [text], model.new_cache(dtype=torch.float32))
    assert not torch.equal(whole, exact)
