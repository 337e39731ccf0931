"""A token by itself: its bytes and text, which add up to the whole text."""

import pytest

from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.serve.words import Words, finite
from tests.inputs.samples import CORPUS, TEXTS, sentencepiece
from tests.serve.conftest import tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_add_up_to_the_text(text: str) -> None:
    words = Words(tokenizer())
    ids = words.tokenizer.encode(text)
    assert b"".join(map(words.raw, ids)).decode() == text


def test_a_part_of_a_character_is_told_by_its_bytes() -> None:
    words = Words(tokenizer())
    texts = [words.text(id) for id in words.tokenizer.encode("€ ok \U0001f980")]
    assert any(text.startswith("bytes:\\x") for text in texts)
    assert all("\ufffd" not in text for text in texts)


def test_sentencepiece_and_byte_fallback() -> None:
    words = Words(Tokenizer.from_gguf(sentencepiece()))
    ids = words.tokenizer.encode("the cat\n")
    assert b"".join(map(words.shown, ids)).decode().lstrip() == "the cat\n"
    assert words.raw(words.tokenizer.id("<0x0A>")) == b"\n"  # type: ignore[arg-type]


def test_a_word_tokenizer_has_words() -> None:
    words = Words(train_tokenizer(CORPUS, "word", special_tokens={"unk": "<unk>"}))
    assert [words.text(id) for id in words.tokenizer.encode("The quick")] == ["The", "quick"]


def test_special_tokens_have_a_text_and_are_not_shown() -> None:
    words = Words(tokenizer())
    id = words.tokenizer.id("<|im_end|>")
    assert id is not None
    assert (words.text(id), words.shown(id)) == ("<|im_end|>", b"")


def test_a_log_probability_of_nothing() -> None:
    assert (finite(None), finite(-1.5), finite(float("-inf"))) == (None, -1.5, -9999.0)


def test_a_row_without_a_token_is_empty() -> None:
    assert Words(tokenizer()).text(10**6) == ""
