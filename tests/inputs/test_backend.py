"""Text is only text; nothing is dropped; a Rust panic is an error like any other."""

import json
import threading
from collections.abc import Callable

import pytest
import tokenizers as library
from hypothesis import given
from tokenizers import Regex, decoders, models, pre_tokenizers

from qkv.errors import InputError, TokenizerError
from qkv.inputs.backend import BYTE_SYMBOLS, Backend, Isolated, native
from qkv.inputs.text import Tokenizer
from tests.inputs.samples import KINDS, TEXTS, any_text, sentencepiece


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text)
def test_no_special_token_comes_out_of_a_text(kind: str, tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text, special=False)
    assert set(ids) & set(tokenizer.specials.values()) <= {tokenizer.unk}
    added = tokenizer.encode("", special=True)
    framed = tokenizer.encode(text, special=True)
    assert len(framed) == len(ids) + len(added)


def test_a_typed_special_token_is_cut_like_any_text() -> None:
    raw = library.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], unk_token="a"))
    raw.add_special_tokens(["aba"])
    assert raw.encode("aba").ids == [3]
    assert Backend(raw).encode(["aba"]) == [[2, 0]]


def test_unigram_and_word_models_hold_their_special_tokens_as_words(tokenizers: dict[str, Tokenizer]) -> None:
    """What the cut in `Backend` is for: the library gives the special id here, `encode_special_tokens` or not."""
    raw = library.Tokenizer.from_str(tokenizers["unigram"]._raw.to_str())
    raw.encode_special_tokens = True
    end = tokenizers["unigram"].specials["</s>"]
    assert end in raw.encode("the</s>fox").ids
    assert end not in tokenizers["unigram"].encode("the</s>fox")
    assert tokenizers["word"].specials["</s>"] not in tokenizers["word"].encode("a </s> b")


def test_a_special_token_without_a_plain_spelling_is_an_error() -> None:
    raw = library.Tokenizer(models.WordLevel({"stop": 0, "go": 1}, unk_token=""))
    raw.normalizer = library.normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.add_special_tokens(["stop"])
    backend = Backend(raw)
    assert backend.encode(["go"]) == [[1]]
    with pytest.raises(TokenizerError, match="stop"):
        backend.encode(["go STOP"])


DROPPERS: dict[str, tuple[Callable[[], library.Tokenizer], str, str]] = {}


def _dropper(text: str, named: str) -> Callable[[Callable[[], library.Tokenizer]], Callable[[], library.Tokenizer]]:
    def add(make: Callable[[], library.Tokenizer]) -> Callable[[], library.Tokenizer]:
        DROPPERS[make.__name__] = (make, text, named)
        return make

    return add


@_dropper("ab ac", r"'c' \(character 4")
def bpe_of_letters() -> library.Tokenizer:
    raw = library.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw


@_dropper("aé", r"'é' \(character 1")
def bytes_without_all_bytes() -> library.Tokenizer:
    raw = library.Tokenizer(models.BPE({"a": 0, BYTE_SYMBOLS["é".encode()[0]]: 1}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return raw


@_dropper("aé", r"'é' \(character 1")
def fallback_without_bytes() -> library.Tokenizer:
    return library.Tokenizer(models.BPE({"a": 0, "<0xC3>": 1}, [], byte_fallback=True))


@_dropper("the cat", r"'cat' \(character 4")
def words() -> library.Tokenizer:
    raw = library.Tokenizer(models.WordLevel({"the": 0}, unk_token=""))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw


@_dropper("The c", r"'c' \(character 4")
def lowered_characters() -> library.Tokenizer:
    raw = library.Tokenizer(models.WordLevel({c: i for i, c in enumerate("the ")}, unk_token=""))
    raw.normalizer = library.normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return raw


@pytest.mark.parametrize("name", DROPPERS)
def test_an_unknown_character_is_named_not_dropped(name: str) -> None:
    make, text, named = DROPPERS[name]
    with pytest.raises(TokenizerError, match=named):
        Backend(make()).encode([text])


def test_a_panic_in_rust_is_a_tokenizer_error() -> None:
    raw = library.Tokenizer(models.WordLevel({" ": 0, "a": 1}, unk_token="a"))
    raw.decoder = decoders.Strip(" ", 1, 1)  # panics on the token " "
    with pytest.raises(BaseException, match="slice index") as caught:
        raw.decode([0])
    assert not isinstance(caught.value, Exception)
    with pytest.raises(TokenizerError, match="slice index"):
        Tokenizer(raw).decode([0])
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")  # Oniguruma gives up, and the library panics
    with pytest.raises(TokenizerError, match="retry-limit"):
        Backend(raw).encode(["a" * 40 + "b"])


def test_ctrl_c_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt), native("it"):
        raise KeyboardInterrupt


def test_input_that_is_no_text(tokenizers: dict[str, Tokenizer]) -> None:
    backend = tokenizers["bpe"]._backend
    with pytest.raises(InputError, match=r"U\+D800, at character 2"):
        backend.encode(["fine", "ab\ud800"])
    with pytest.raises(InputError, match="must be a string, got tuple"):
        backend.encode([("a", "b"), "c"])  # type: ignore[list-item]


def test_one_lock_for_both_ways_to_begin() -> None:
    """`middle` switches the tokenizer's pre-tokenizer; threads that don't must not notice."""
    raw = library.Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2}, [("▁", "a")]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend = Backend(raw)
    wrong: list[object] = []

    def run(middle: bool, want: list[int]) -> None:
        for _ in range(500):
            got = backend.encode(["a"], middle=middle)[0]
            if got != want:
                wrong.append(got)

    threads = [threading.Thread(target=run, args=args) for args in ((False, [2]), (True, [1])) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert '"first"' in backend.json()


def isolated(raw: library.Tokenizer) -> Isolated:
    stripped = library.Tokenizer.from_str(
        json.dumps(json.loads(raw.to_str()) | {"normalizer": None, "pre_tokenizer": None})
    )
    return Isolated(raw.to_str(), stripped, ["a reason"])


def test_isolated_gives_the_same_ids() -> None:
    raw = Tokenizer.from_gguf(sentencepiece())._raw
    backend, apart = Backend(raw), isolated(raw)
    for add in (False, True):
        assert apart.encode(TEXTS, add=add) == backend.encode(TEXTS, add=add)
    assert apart.encode(["a"], middle=True) == backend.encode(["a"], middle=True)
    assert apart.pieces(TEXTS) == backend.pieces(TEXTS)
    assert apart.pieces(["a"], middle=True) == backend.pieces(["a"], middle=True)
    assert apart.pieces([]) == []
    assert apart.pair_frame == backend.pair_frame
    assert apart.encode([]) == []
    with pytest.raises(InputError, match="surrogate"):
        apart.encode(["\ud800"])


def test_isolated_names_what_it_stopped() -> None:
    raw = library.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("a+b"), "isolated")  # quadratic, far below Oniguruma's own limit
    apart = isolated(raw)
    with pytest.raises(TokenizerError, match=r"took more than .* s\..*a reason.*trust=True"):
        apart.encode(["a" * 100_000])
    with pytest.raises(TokenizerError, match=r"took more than"):
        apart.pieces(["a" * 100_000])
    assert apart.encode(["ab"]) == [[0]]


def test_isolated_reports_a_file_that_does_not_load() -> None:
    apart = Isolated("{}", library.Tokenizer(models.BPE()), [])
    for _ in range(2):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            apart.encode(["a"])
