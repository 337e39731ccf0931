"""Where sentences begin."""

import pytest

from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.train.sentences import starts

TEXT = 'One two. Three four!  "Five?" Six (seven.) Eight 1.5 nine...\nTen'
BEGINS = ["One", "Three", '"', "Six", "Eight", "Ten"]


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "char"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    sizes = {"wordpiece": 60, "bpe": 260, "char": None}
    return train_tokenizer([TEXT], request.param, sizes[request.param])


def test_where_sentences_begin(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pieces([TEXT])[0]
    found = starts(TEXT, pieces)
    assert found[0] == 0
    assert len(found) == len(BEGINS)
    for place, begins in zip(found, BEGINS, strict=True):
        start = pieces.offsets[place][0]
        assert TEXT[start:].lstrip().startswith(begins)


def test_one_sentence(tokenizer: Tokenizer) -> None:
    for text in ("One two", "One two.", "One two. "):
        assert starts(text, tokenizer.pieces([text])[0]) == [0]


def test_sentences_without_spaces() -> None:
    tokenizer = train_tokenizer(["あい。う"], "char")
    assert starts("あい。うあ。い", tokenizer.pieces(["あい。うあ。い"])[0]) == [0, 3, 6]
