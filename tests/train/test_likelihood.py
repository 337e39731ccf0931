"""Perplexity and bits per byte: each token once, behind as much text as is said, by a model one token at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

import qkv
from qkv import spec
from qkv.adapt.quantize import quantize
from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.train.likelihood import likelihood
from tests.tiny import tiny_spec

WORDS = {"<s>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 31)}}


def model(bos: bool, length: int | None = None) -> qkv.Model:
    raw = tokenizers.Tokenizer(models.WordLevel(WORDS, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    embed = {} if length is None else {"embed": spec.Embed(spec.Learned(length))}
    torch.manual_seed(0)
    made = qkv.Model(tiny_spec(**embed)).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    made.tokenizer = Tokenizer(raw, bos="<s>", eos="</s>", unk="<unk>")
    return made


def slowly(made: qkv.Model, ids: list[int], bos: bool, length: int, stride: int) -> tuple[float, int]:
    """Token after token: each is predicted from its window alone, a window being found by walking along the text."""
    before = [0] if bos else []
    room = length - len(before)
    total, counted, start = 0.0, 0, 0
    for i, id in enumerate(ids):
        while i >= start + room:
            start += room - stride
            start = min(start, max(0, len(ids) - room))  # the last window is full, too
        read = [*before, *ids[start:i]]
        if read:
            total -= float(made([read])[0][-1].log_softmax(-1)[id].detach())
            counted += 1
    return total, counted


@given(
    texts=st.lists(st.lists(st.integers(3, 30), max_size=14), min_size=1, max_size=3),
    bos=st.booleans(),
    length=st.integers(3, 9),
    share=st.floats(0, 0.99),
)
def test_each_token_once(texts: list[list[int]], bos: bool, length: int, share: float) -> None:
    made = model(bos)
    stride = max(int(share * (length - bos)), 1 - bos)
    want = [slowly(made, ids, bos, length, stride) for ids in texts]
    written = [" ".join(f"w{id}" for id in ids) for ids in texts]
    if not sum(count for _, count in want):
        with pytest.raises(InputError, match="no token to predict"):
            likelihood(made, made.tokenizer, written, length=length, stride=stride)
        return
    got = likelihood(made, made.tokenizer, written, length=length, stride=stride, budget=12)
    assert got.tokens == sum(count for _, count in want)
    assert got.nll == pytest.approx(sum(nll for nll, _ in want), rel=1e-4)


def test_a_text_within_one_window_is_the_models_own_loss() -> None:
    made = model(True)
    ids = [5, 9, 4, 30, 7]
    text = " ".join(f"w{id}" for id in ids)
    out = made([[0, *ids[:-1]]])[0]
    want = float(torch.nn.functional.cross_entropy(out, torch.tensor(ids)).detach())
    got = likelihood(made, made.tokenizer, [text])
    assert got.values["loss"] == pytest.approx(want, rel=1e-5)
    assert got.values["perplexity"] == pytest.approx(math.exp(want), rel=1e-5)
    assert got.values["bits_per_byte"] == pytest.approx(want * 5 / math.log(2) / len(text), rel=1e-5)
    assert (got.windows, got.length, got.size) == (1, 1024, len(text))
    assert "behind BOS" in got.describe()


def test_bytes_are_those_of_the_tokens_that_count() -> None:
    """Without BOS the first word is not predicted; the space after it is part of the text that is."""
    made = model(False)
    got = likelihood(made, made.tokenizer, ["w10 w11 ééé"])
    assert (got.tokens, got.size) == (2, len(" w11 ééé".encode()))
    assert "the first token of each text is not counted" in got.describe()


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """A model without anything learned gives each token the same chance: a bit count that follows from the text."""

    def uniform(split: Callable[[], Any], vocab: dict[str, int]) -> float:
        raw = tokenizers.Tokenizer(models.WordLevel(vocab, "<unk>"))
        raw.pre_tokenizer = split()
        raw.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
        made = qkv.Model(spec.Model(len(vocab), 16, tiny_spec().decoder))
        torch.nn.init.zeros_(made.table)
        tokenizer = Tokenizer(raw, bos="<s>", unk="<unk>")
        return likelihood(made, tokenizer, ["abababab"]).values["bits_per_byte"]

    # 4 letters or specials: 2 bits a byte. 16 pairs or specials: 4 bits for two bytes.
    letters = {"<s>": 0, "<unk>": 1, "a": 2, "b": 3}
    pairs = {"<s>": 0, "<unk>": 1, **{f"{i:02d}": i + 2 for i in range(13)}, "ab": 15}
    one = uniform(lambda: pre_tokenizers.Split("", "isolated"), letters)
    two = uniform(lambda: pre_tokenizers.Split("ab", "isolated"), pairs)
    assert (one, two) == (pytest.approx(2.0), pytest.approx(2.0))


def test_many_tokens_and_packed_weights() -> None:
    """More than one chunk of logits; and a table that is packed, as a GGUF file's is."""
    made = model(True)
    ids = [3 + i % 28 for i in range(150)]
    text = " ".join(f"w{id}" for id in ids)
    whole = likelihood(made, made.tokenizer, [text], length=200)
    nll = torch.nn.functional.cross_entropy(made([[0, *ids[:-1]]])[0], torch.tensor(ids), reduction="sum")
    assert (whole.windows, whole.tokens) == (1, 150)
    assert whole.nll == pytest.approx(float(nll.detach()), rel=1e-5)
    wide = qkv.Model(spec.Model(32, 32, tiny_spec().decoder))
    torch.nn.init.normal_(wide.table, std=0.5)
    plain = likelihood(wide, made.tokenizer, [text])
    assert quantize(wide, "int8").packed
    assert likelihood(wide, made.tokenizer, [text]).nll == pytest.approx(plain.nll, rel=0.02)


def test_the_window_is_what_the_model_can_read() -> None:
    made = model(True, length=8)
    got = likelihood(made, made.tokenizer, ["w5 " * 30])
    assert (got.length, got.stride, got.tokens) == (8, 3, 30)
    with pytest.raises(InputError, match="window is 9 tokens; the most is 8"):
        likelihood(made, made.tokenizer, ["w5"], length=9)
    with pytest.raises(InputError, match="room for 3 tokens of text: too few to share 3"):
        likelihood(made, made.tokenizer, ["w5"], length=4, stride=3)
    with pytest.raises(InputError, match="stride must be at least 1: without a BOS"):
        likelihood(model(False), model(False).tokenizer, ["w5 w6"], stride=0)
    with pytest.raises(InputError, match="room for 0 tokens"):
        likelihood(made, made.tokenizer, ["w5"], length=1)


def test_what_has_no_likelihood() -> None:
    made = model(False)
    with pytest.raises(InputError, match="no token to predict"):
        likelihood(made, made.tokenizer, ["w5", ""])
    with torch.no_grad():
        made.table.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        likelihood(made, made.tokenizer, ["w5 w6"])
    from tests.train.heads import encoder

    other = encoder(spec.States())
    with pytest.raises(InputError, match="perplexity is of a decoder"):
        likelihood(other, other.tokenizer, ["a"])
