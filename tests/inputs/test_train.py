"""Trained tokenizers keep what they promise: byte-level ones every text, the others an unknown token or an error."""

from pathlib import Path

import pytest
from hypothesis import given

from qkv.errors import InputError, NotFound, TokenizerError
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import Kind, train_tokenizer
from tests.inputs.samples import CORPUS, any_text


@given(text=any_text)
def test_bpe_gives_every_text_back(tokenizers: dict[str, Tokenizer], text: str) -> None:
    assert tokenizers["bpe"].decode(tokenizers["bpe"].encode(text)) == text


@pytest.mark.parametrize(
    ("kind", "size"), [("bpe", 300), ("wordpiece", 190), ("unigram", 90), ("char", 60), ("word", 60)]
)
def test_the_size_is_what_was_asked_for(kind: Kind, size: int) -> None:
    assert train_tokenizer(CORPUS, kind, size).vocab_size == size


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("char", 60), ("word", 60)])
def test_training_is_the_same_each_time(kind: Kind, size: int) -> None:
    first, second = (train_tokenizer(CORPUS, kind, size) for _ in range(2))
    assert first._raw.to_str() == second._raw.to_str()


def test_usual_special_tokens_come_first_and_frame_a_text() -> None:
    bert = train_tokenizer(CORPUS, "wordpiece", 190, lowercase=True)
    assert [bert.token(id) for id in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (bert.pad, bert.unk, bert.cls, bert.sep, bert.mask) == (0, 1, 2, 3, 4)
    ids = bert.encode("The QUICK fox")
    assert (ids[0], ids[-1]) == (2, 3)
    assert bert.decode(ids) == "the quick fox"
    assert train_tokenizer(CORPUS, "bpe", 300).eos == (0,)
    assert train_tokenizer(CORPUS, "unigram", 100).specials == {"<pad>": 0, "</s>": 1, "<unk>": 2}


def test_special_tokens_by_role_or_as_a_list() -> None:
    by_role = train_tokenizer(CORPUS, "bpe", 300, special_tokens={"bos": "<s>", "eos": "</s>", "pad": "</s>"})
    assert (by_role.bos, by_role.eos, by_role.pad) == (0, (1,), 1)
    listed = train_tokenizer(CORPUS, "bpe", 300, special_tokens=["<a>", "<b>"])
    assert (listed.specials, listed.eos) == ({"<a>": 0, "<b>": 1}, ())


def test_unigram_keeps_what_it_knows() -> None:
    tokenizer = train_tokenizer(CORPUS, "unigram", 100)
    for text in ("The quick brown fox", "one two  three", "日本語"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk in tokenizer.encode("Ω")


def test_characters_and_words() -> None:
    characters = train_tokenizer(["abc cab\n"], "char")
    assert characters.vocab_size == 5
    assert characters.decode(characters.encode("ab\n c")) == "ab\n c"
    words = train_tokenizer(["the cat, the dog."], "word")
    assert words.vocab_size == 5
    assert words.decode(words.encode("the dog, the cat")) == "the dog , the cat"


def test_what_a_vocabulary_lacks_is_an_error_or_the_unknown_token() -> None:
    with pytest.raises(TokenizerError, match=r"no 'é' \(character 2 of the text\)"):
        train_tokenizer(["abc"], "char").encode("abé")
    with pytest.raises(TokenizerError, match=r"no 'dog' \(character 4 of the text\)"):
        train_tokenizer(["the cat"], "word").encode("the dog")
    characters = train_tokenizer(["abc"], "char", special_tokens={"unk": "<unk>"})
    assert characters.encode("abé") == [1, 2, 0]
    assert characters.decode(characters.encode("abé"), skip_special=False) == "ab<unk>"
    with pytest.raises(TokenizerError):
        train_tokenizer(["abc"], "unigram", 5, special_tokens=["<a>"]).encode("é")


def test_the_most_frequent_come_in() -> None:
    tokenizer = train_tokenizer(["a a a b b c"], "word", 3, special_tokens={"unk": "<unk>"})
    assert tokenizer.encode("a b c") == [1, 2, 0]


def test_fewer_tokens_than_asked_for_are_reported() -> None:
    with pytest.warns(UserWarning, match="gave 257 tokens, of 1,000 asked for"):
        train_tokenizer(["x"], "bpe", 1000)


def test_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_bytes("abc\r\ncab é".encode())
    two.write_bytes(b"")
    tokenizer = train_tokenizer([one, two], "char")
    assert sorted(tokenizer._raw.get_vocab()) == sorted("abc\r\n é")
    with pytest.raises(NotFound, match="nowhere"):
        train_tokenizer([tmp_path / "nowhere.txt"], "char")
    two.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"two\.txt isn't UTF-8"):
        train_tokenizer([one, two], "char")
    with pytest.raises(InputError, match=r"is a file's name: give paths as pathlib\.Path"):
        train_tokenizer([str(one)], "char")


@pytest.mark.parametrize(
    ("texts", "kind", "size", "special", "message"),
    [
        (CORPUS, "bytes", 300, None, "'bytes', none of bpe, wordpiece"),
        ("a text", "bpe", 300, None, "texts is a list"),
        ([], "bpe", 300, None, "texts are empty"),
        (["", ""], "char", None, None, "texts are empty"),
        (["a", "\ud800"], "bpe", 300, None, "lone surrogate"),
        (["a", 3], "bpe", 300, None, "must be a string, got int"),
        (CORPUS, "bpe", None, None, "needs a vocab_size"),
        (CORPUS, "bpe", 256, None, "vocab_size is 256; a bpe tokenizer has at least 257"),
        (CORPUS, "wordpiece", 20, None, "vocab_size is 20; the characters of these texts alone need"),
        (CORPUS, "bpe", 300, {"start": "<s>"}, "'start', none of bos, eos"),
        (CORPUS, "bpe", 300, [""], "empty token"),
        (CORPUS, "wordpiece", 300, ["<s>"], "needs an 'unk'"),
    ],
)
def test_wrong_arguments_are_named(texts: object, kind: Kind, size: int | None, special: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_tokenizer(texts, kind, size, special_tokens=special)  # type: ignore[arg-type]


def test_progress_is_for_terminals_only(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer(CORPUS, "bpe", 300)
    assert capfd.readouterr() == ("", "")
