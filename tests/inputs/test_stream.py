"""Pieces that come one by one are the text that comes at once."""

import json
import time
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from qkv.errors import InputError, TokenizerError
from qkv.inputs.stream import StreamDecoder
from qkv.inputs.text import Tokenizer
from tests.inputs.samples import KINDS, any_text


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_pieces_of_any_ids_are_the_decoded_text(
    kind: str, tokenizers: dict[str, Tokenizer], data: st.DataObject
) -> None:
    """Random ids are mostly no text at all: broken UTF-8, stray bytes, special tokens anywhere."""
    tokenizer = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip)
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
@given(text=any_text)
def test_text_never_shows_half_a_character(kind: str, tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers[kind]
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in tokenizer.encode(text)]
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    want = text if kind == "bpe" else text.replace("▁", " ")  # to SentencePiece the two are one
    assert "".join([*pieces, stream.finish()]) == want


def test_an_unfinished_character_comes_out_at_the_end(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    ids = tokenizer.encode("a€")[:-1]
    stream = tokenizer.stream()
    assert stream.push(ids) == "a"
    assert stream.finish() == "\ufffd"


def test_context_keeps_the_space_that_a_texts_start_would_lose(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    prompt, more = tokenizer.encode("a cat"), tokenizer.encode("is", special=False)
    assert tokenizer.stream().push(more) == "is"
    assert tokenizer.stream(context=prompt).push(more) == " is"


def test_ids_without_a_token_are_refused(tokenizers: dict[str, Tokenizer]) -> None:
    stream = tokenizers["bpe"].stream()
    for id in (400, -1, 2**40):
        with pytest.raises(InputError, match=str(id)):
            stream.push(id)


def test_a_push_takes_no_longer_late_in_a_long_text(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("bpe", "sentencepiece", "wordpiece"):
        stream = tokenizers[kind].stream()
        ids = tokenizers[kind].encode("the cat is ", special=False) * 400
        times = []
        for _ in range(10):
            begin = time.process_time()
            stream.push(ids)
            times.append(time.process_time() - begin)
        assert min(times[5:]) < 3 * max(times[:5])  # a decoder that starts over each time would take 10 times as long


PARTS = [
    decoders.BPEDecoder("</w>"),
    decoders.Metaspace("▁", "always"),
    decoders.Metaspace("▁", "never"),
    decoders.WordPiece("##", False),
    decoders.ByteFallback(),
    decoders.Strip("▁", 1, 1),
    decoders.Sequence([decoders.Replace("</w>", " "), decoders.ByteLevel()]),
    decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    ),
    decoders.Sequence([decoders.Replace("▁▁", " "), decoders.Fuse(), decoders.Replace("a", "b")]),
]


@pytest.mark.parametrize("decoder", PARTS, ids=str)
@given(
    tokens=st.lists(
        st.sampled_from(["a", "ab</w>", "▁a", "▁▁", "##a", "a▁", "<0xE2>", "<0x82>", "<0xAC>", "<0xZZ>", "Ġ", "é"])
    )
)
def test_every_decoder_step_is_the_librarys(decoder: Any, tokens: list[str]) -> None:
    names = dict.fromkeys(tokens)
    raw = library.Tokenizer(models.WordLevel({name: id for id, name in enumerate(names)}, unk_token=""))
    raw.decoder = decoder
    ids = [raw.token_to_id(token) for token in tokens]
    stream = StreamDecoder(json.loads(decoder.__getstate__()), raw.id_to_token)
    assert "".join([*map(stream.push, ids), stream.finish()]) == raw.decode(ids)


def test_a_decoder_that_needs_the_whole_text_is_named() -> None:
    with pytest.raises(TokenizerError, match="CTC"):
        StreamDecoder(json.loads(decoders.CTC().__getstate__()), str)
