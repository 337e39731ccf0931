"""Tokens know their characters, words and segments, as transformers tells them; a frame is the post-processor's."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from qkv.errors import InputError, TokenizerError
from qkv.inputs.encoded import Frame, Pieces, Slot, frame
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from tests.inputs.samples import CORPUS, KINDS, TEXTS, any_text

pytestmark = pytest.mark.filterwarnings("ignore:the texts gave")  # such a corpus has fewer than asked for
MIXED = ["naïve cafe\u0301 😀👩‍👩‍👧 日本語 text", "İstanbul ﬁne Straße", "  two  spaces\n", "Привет, мир! مرحبا"]


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text)
def test_pieces_are_the_ids_with_places_in_the_text(kind: str, tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers[kind]
    (pieces,) = tokenizer.pieces([text])
    assert pieces.ids == tokenizer.encode(text, special=False)
    assert len(pieces.ids) == len(pieces.offsets) == len(pieces.words)
    assert all(0 <= start <= end <= len(text) for start, end in pieces.offsets)
    assert pieces.words == sorted(pieces.words)
    covered = {at for start, end in pieces.offsets for at in range(start, end)}
    if kind == "bpe":  # which changes no character before it cuts
        assert covered == set(range(len(text)))
    whole = tokenizer.encode_with_offsets(text)
    assert whole.ids == tokenizer.encode(text)
    assert len(whole) == len(pieces) + tokenizer.frame().added


def test_offsets_are_characters_not_bytes(tokenizers: dict[str, Tokenizer]) -> None:
    (pieces,) = tokenizers["bpe"].pieces(["é😀 x"])
    assert len(pieces) > 4  # tokens that are bytes of a character stand for all of it
    assert {(0, 1), (1, 2)} <= set(pieces.offsets)
    assert pieces.offsets[-1][1] == 4
    (pieces,) = tokenizers["wordpiece"].pieces(["Cafe\u0301 😀 日本"])  # the accent is taken off, [UNK] is whole
    assert [("Cafe\u0301 😀 日本"[s:e]) for s, e in pieces.offsets][-3:] == ["😀", "日", "本"]


def saved(raw: library.Tokenizer, folder: Path, **names: str) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    Tokenizer(raw, **names).save(folder)
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


def like_roberta(**mask: Any) -> library.Tokenizer:
    raw = library.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "</s>", "<mask>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.add_special_tokens([AddedToken("<mask>", **mask)])
    raw.decoder = library.decoders.ByteLevel()
    raw.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return raw


def like_bert() -> library.Tokenizer:
    return library.Tokenizer.from_str(train_tokenizer(CORPUS, "wordpiece", 250)._raw.to_str())


@pytest.mark.parametrize("make", [like_bert, like_roberta])
def test_frames_segments_and_offsets_are_those_of_transformers(make: Any, tmp_path: Path) -> None:
    named = {"cls": "<s>", "sep": "</s>"} if make is like_roberta else {"cls": "[CLS]", "sep": "[SEP]"}
    ours, theirs = saved(make(), tmp_path, **named)
    options = {"return_offsets_mapping": True, "return_token_type_ids": True, "split_special_tokens": True}
    for text in [*TEXTS, *MIXED]:
        for second in (None, "a second one", text or "x"):  # transformers takes "" for none
            got, want = ours.encode_with_offsets(text, second), theirs(text, second, **options)
            assert got.ids == want["input_ids"]
            assert got.segments == want["token_type_ids"]
            assert [offset or (0, 0) for offset in got.offsets] == want["offset_mapping"]
            assert got.parts == want.sequence_ids()
            assert got.words == want.word_ids()
            assert got.places(0) == [i for i, part in enumerate(want.sequence_ids()) if part == 0]


def test_a_frame_may_put_the_second_text_first() -> None:
    raw = library.Tokenizer(models.WordLevel({"a": 0, "b": 1, "[X]": 2, "[Y]": 3}, unk_token="a"))
    pair = "[X] $B:1 [Y]:3 $A:2"
    special: list[Any] = [("[X]", 2), {"id": "[Y]", "ids": [3, 2], "tokens": ["[Y]", "[X]"]}]
    raw.post_processor = processors.TemplateProcessing(single="$A [X]", pair=pair, special_tokens=special)
    assert frame(raw, 1) == Frame((Slot(0, 0, 0), Slot(None, 2, 0)))
    two = Tokenizer(raw).encode_with_offsets("a", "b")
    assert (two.ids, two.segments, two.parts) == ([2, 1, 3, 2, 0], [0, 1, 3, 3, 2], [None, 1, None, None, 0])
    assert (Tokenizer(raw).frame(1).added, Tokenizer(raw).frame(2).added) == (1, 3)


def test_a_typed_special_token_keeps_its_place(tokenizers: dict[str, Tokenizer]) -> None:
    """Unigram models know their special tokens as words, so such a text is cut and encoded in parts."""
    text = "the   </s>   fox </s>"
    (pieces,) = tokenizers["unigram"].pieces([text])
    assert pieces.ids == tokenizers["unigram"].encode(text, special=False)
    for id, (start, end) in zip(pieces.ids, pieces.offsets, strict=True):
        token = tokenizers["unigram"].token(id)
        assert token in ("<unk>", "▁") or token.replace("▁", " ").strip() == text[start:end].strip()
    assert text.index("f") in {at for start, end in pieces.offsets for at in range(start, end)}
    assert pieces.offsets[-1][1] == len(text)


def test_a_slice_of_pieces() -> None:
    pieces = Pieces([1, 2, 3], [(0, 1), (1, 2), (2, 4)], [0, 0, 1])
    assert pieces[1:] == Pieces([2, 3], [(1, 2), (2, 4)], [0, 1])
    assert Pieces.join([(0, pieces), (10, pieces[2:])]) == Pieces(
        [1, 2, 3, 3], [(0, 1), (1, 2), (2, 4), (12, 14)], [0, 0, 1, 3]
    )


@pytest.mark.parametrize("lstrip", [False, True])
def test_the_mask_is_read_from_a_text_and_nothing_else_is(lstrip: bool, tmp_path: Path) -> None:
    raw = like_roberta(lstrip=lstrip)
    ours, theirs = saved(raw, tmp_path, mask="<mask>", cls="<s>")
    for text in (
        "The <mask> fox",
        "<mask>",
        "<mask> <mask>a",
        "The quick brown",
        "é  <mask>  日本<mask>",
        "😀<mask>. ",
    ):
        pieces = ours.masked_pieces(text)
        want = theirs(text, return_offsets_mapping=True, add_special_tokens=False)
        assert pieces.ids == want["input_ids"]
        for got, wanted in zip(pieces.offsets, want["offset_mapping"], strict=True):
            assert text[slice(*got)].strip() == text[slice(*wanted)].strip()
            assert got[1] == wanted[1] or not text[slice(*got)].strip()
    typed = ours.masked_pieces("</s> <mask>")
    assert typed.ids.count(ours.id("<mask>")) == 1
    assert ours.id("</s>") not in typed.ids
    assert ours.id("<mask>") not in ours.encode("The <mask> fox")


def test_the_mask_of_a_tokenizer_that_prefixes_words(tmp_path: Path) -> None:
    raw = library.Tokenizer.from_str(train_tokenizer(CORPUS, "unigram", 200)._raw.to_str())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.normalizer = normalizers.NFC()
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    ours, theirs = saved(raw, tmp_path, mask="<mask>")
    for text in ("The <mask> fox", "<mask>ed fox", "jump<mask>over"):
        assert ours.masked_pieces(text).ids == theirs.encode(text, add_special_tokens=False)


def test_what_cannot_be_masked_is_named(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(TokenizerError, match="no mask token"):
        tokenizers["bpe"].masked_pieces("The [MASK]")
    with pytest.raises(InputError, match="surrogate"):
        tokenizers["wordpiece"].masked_pieces("\ud800")
    with pytest.raises(InputError, match="surrogate"):
        tokenizers["wordpiece"].encode_with_offsets("a", "\ud800")
