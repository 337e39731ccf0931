"""Tokens for masks are those of transformers' pipeline, put where the mask stood."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
import torch
from tokenizers import AddedToken, models, pre_tokenizers, processors

from qkv import spec
from qkv.errors import InputError, TokenizerError
from qkv.inputs.text import Tokenizer
from qkv.tasks.fill import fill
from qkv.tasks.predict import predict
from tests.tasks.fakes import WORDS, Fake, asking, bert, by_id, theirs, wordpiece

MASKED = spec.MaskedLM(spec.LayerNorm())
TEXTS = [
    "Paris is the [MASK] of France",
    "[MASK] lives in Berlin",
    "Who is [MASK]?",
    "([MASK])",
    "It's [MASK], isn't it",
]


def model(compute: Any, head: spec.Head = MASKED, **changes: Any) -> Any:
    return Fake(bert(head, wordpiece().vocab_size, **changes), compute)


def test_fillings_are_those_of_the_pipeline(tmp_path: Path) -> None:
    import transformers

    reference, tokenizer = theirs(tmp_path, wordpiece(), "MaskedLM")
    pipeline = transformers.pipeline("fill-mask", model=reference, tokenizer=tokenizer)
    filler = model(asking(reference, "logits"))
    for text, found in zip(TEXTS, predict(filler, wordpiece(), TEXTS, top=9), strict=True):
        want = pipeline(text, top_k=9)
        (got,) = found.masks
        assert [(one.id, one.text) for one in got] == [(o["token"], o["token_str"]) for o in want]
        assert [one.score for one in got] == pytest.approx([o["score"] for o in want], abs=1e-5)
        for one, theirs_ in zip(got, want, strict=True):
            same = one.filled.lower().replace(" ", "") == theirs_["sequence"].lower().replace(" ", "")
            assert same or one.text.startswith("[")  # a special one, which transformers leaves out of the sequence
    text = "[MASK] is the [MASK]"
    for got, want in zip(predict(filler, wordpiece(), text).masks, pipeline(text), strict=True):
        assert [one.id for one in got] == [o["token"] for o in want]


def wanting(*tokens: str, tokenizer: Tokenizer | None = None) -> Any:
    """A head that wants these tokens everywhere, the first one most."""
    tokenizer = tokenizer or wordpiece()

    def compute(ids: list[int], _: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(ids), tokenizer.vocab_size)
        for i, token in enumerate(tokens):
            logits[:, tokenizer.id(token) or 0] = 20.0 - i
        return logits

    return compute


FILLED = [
    ("Paris is the [MASK] of France", "the", "Paris is the the of France"),
    ("[MASK] is", "the", "the is"),
    ("([MASK])", "the", "(the)"),
    ("pla [MASK] it", "##s", "plas it"),
    ("[MASK]s", "##s", "##ss"),
    ("is it [MASK]", ".", "is it."),
    ("a  [MASK]  b", "the", "a  the  b"),
    ("É [MASK] 😀", "the", "É the 😀"),
]


@pytest.mark.parametrize(("text", "token", "filled"), FILLED)
def test_the_token_stands_where_the_mask_stood(text: str, token: str, filled: str) -> None:
    found = predict(model(wanting(token)), wordpiece(), text, top=1)
    assert found.masks[0][0].filled == str(found) == filled
    assert found.text == text


def test_each_mask_is_filled_by_itself() -> None:
    found = predict(model(wanting("the", "s")), wordpiece(), "[MASK] a [MASK]", top=2)
    assert [[one.filled for one in own] for own in found.masks] == [
        ["the a [MASK]", "s a [MASK]"],
        ["[MASK] a the", "[MASK] a s"],
    ]


def like_roberta() -> Tokenizer:
    raw = library.Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), library.decoders.ByteLevel()
    special = ["<s>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        WORDS, library.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special)
    )
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    raw.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return Tokenizer(raw, cls="<s>", sep="</s>", mask="<mask>")


@pytest.mark.parametrize(
    ("text", "token", "filled"),
    [
        ("Paris is <mask> of", "Ġthe", "Paris is the of"),
        ("Paris is <mask> of", "s", "Paris iss of"),
        ("<mask> is", "Ġthe", "the is"),
        ("(<mask>)", "Ġthe", "( the)"),
        ("is<mask>,", "Ġthe", "is the,"),
        ("😀 <mask>", "Ġthe", "😀 the"),
        ("is <mask>", "ð", "is\ufffd"),  # a byte of a character
    ],
)
def test_a_mask_that_claims_the_space_before_it(text: str, token: str, filled: str) -> None:
    tokenizer = like_roberta()
    filler = Fake(bert(MASKED, tokenizer.vocab_size, segments=0), wanting(token, tokenizer=tokenizer))
    found = predict(filler, tokenizer, text, top=1)  # type: ignore[arg-type]
    assert str(found) == filled


def test_the_masked_head_among_several() -> None:
    heads = spec.Heads((spec.Classify(("next", "random")), MASKED))
    compute = wanting("the")
    both = model(lambda ids, kinds: (torch.zeros(2), compute(ids, kinds)), heads)
    assert str(predict(both, wordpiece(), "is [MASK] it")) == "is the it"


def test_only_tokens_that_the_tokenizer_has() -> None:
    """A table of embeddings may have more rows than there are tokens."""
    padded = Fake(bert(MASKED, 999), by_id(torch.arange(999.0).expand(999, 999)))
    (found,) = predict(padded, wordpiece(), "[MASK]", top=9999).masks  # type: ignore[arg-type]
    assert sorted(one.id for one in found) == [*range(wordpiece().vocab_size)]


def test_wrong_input_is_named(tokenizers: dict[str, Tokenizer]) -> None:
    filler = model(wanting("the"))
    with pytest.raises(InputError, match=r"the text has no mask: write \[MASK\] where a word is missing"):
        predict(filler, wordpiece(), "Paris is the <mask> of France")
    with pytest.raises(InputError, match=r"texts\[1\] has no mask"):
        predict(filler, wordpiece(), ["[MASK]", "[mask]"])
    with pytest.raises(InputError, match="the text has 102 tokens; the most is 64: this model's learned positions"):
        predict(filler, wordpiece(), "[MASK]" + "a " * 99)
    with pytest.raises(InputError, match="filling in takes one text, without a second"):
        predict(filler, wordpiece(), "[MASK]", "a")
    with pytest.raises(InputError, match="top must be a whole number from 1, got 0"):
        predict(filler, wordpiece(), "[MASK]", top=0)
    with pytest.raises(TokenizerError, match="no mask token"):
        predict(filler, tokenizers["bpe"], "[MASK]")
    with pytest.raises(InputError, match="filling in needs a MaskedLM head; the model's is Span"):
        fill(Fake(bert(spec.Span(), 99), filler.compute), wordpiece(), [("[MASK]",)])  # type: ignore[arg-type]
