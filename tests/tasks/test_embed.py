"""Texts to vectors: the model's own, whatever they are read with; what is too long is refused, cut or averaged."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import qkv
from qkv import spec
from qkv.errors import InputError
from qkv.load.sentence import Sentence
from qkv.nn.stack import Transformer
from qkv.tasks.embed import Long, TooLong, embed
from tests.sentences import DIM, LONG, POSITIONS, TEXTS, sentence_folder, theirs, tokenizer

WORDS = tokenizer()
CLS, SEP = WORDS.cls, WORDS.sep


def tiny(head: spec.Head, dropout: float = 0.0) -> Transformer:
    """A BERT of random weights, large enough that texts differ."""
    torch.manual_seed(0)
    mixer = spec.Attention(4, 4, mask=spec.Full(), qkv_bias=True, out_bias=True)
    block = spec.Block(mixer, spec.Plain(48, "gelu", bias=True), spec.LayerNorm(), place="post", dropout=dropout)
    stack = spec.Stack((block,), 2, embed=spec.Embed(spec.Learned(POSITIONS), norm=spec.LayerNorm(), segments=2))
    model = Transformer(spec.Model(WORDS.vocab_size, DIM, encoder=stack, head=head)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model


MODEL = tiny(spec.Pool(how="mean", normalize=True))
PLAIN = tiny(spec.Pool(how="mean"))


def framed(text: str) -> list[int]:
    return WORDS.encode(text)


def own(model: Transformer, ids: list[int]) -> Any:
    with torch.no_grad():
        return model([ids])[0].numpy()


class Mean(nn.Module):
    """A model whose vector is one number, the mean of the ids, and which remembers what it read."""

    def __init__(self, context: int | None) -> None:
        super().__init__()
        stack = spec.Stack((spec.Block(spec.Attention(1, 1), spec.Plain(1, "gelu"), spec.RMS()),), 1)
        self.spec = spec.Model(999, 1, encoder=stack, head=spec.Pool(), context=context)
        self.batches: list[list[list[int]]] = []

    @property
    def rows(self) -> list[list[int]]:
        return [row for rows in self.batches for row in rows]

    def forward(self, rows: list[Tensor]) -> list[Tensor]:
        self.batches.append([row.tolist() for row in rows])
        return [row.float().mean()[None] for row in rows]


# --- what is computed ---


def test_each_text_has_the_models_own_vector_in_the_order_of_the_texts() -> None:
    done = embed(MODEL, WORDS, TEXTS)
    assert (done.vectors.shape, done.vectors.dtype) == ((len(TEXTS), DIM), np.float32)
    for text, vector in zip(TEXTS, done.vectors, strict=True):
        np.testing.assert_allclose(vector, own(MODEL, framed(text)), atol=1e-6)
    assert done.tokens == sum(len(framed(text)) for text in TEXTS)
    assert (done.limit, done.long, done.note()) == (POSITIONS, (), None)


def test_one_text_gives_one_vector_and_no_text_none() -> None:
    assert embed(MODEL, WORDS, "fox").vectors.shape == (DIM,)
    assert embed(MODEL, WORDS, []).vectors.shape == (0, DIM)
    np.testing.assert_allclose(embed(MODEL, WORDS, iter(["fox"])).vectors[0], embed(MODEL, WORDS, "fox").vectors)


@given(st.lists(st.sampled_from([*TEXTS, "日" * 30, "the fox " * 9]), max_size=12), st.integers(1, 90))
def test_a_text_gets_the_same_vector_alone_and_among_others(texts: list[str], budget: int) -> None:
    together = embed(MODEL, WORDS, texts, budget=budget).vectors
    for text, vector in zip(texts, together, strict=True):
        assert np.abs(embed(MODEL, WORDS, text).vectors - vector).max() < 1e-6


def test_an_empty_text_is_its_special_tokens() -> None:
    np.testing.assert_allclose(embed(PLAIN, WORDS, "").vectors, own(PLAIN, [CLS, SEP]), atol=1e-6)


def test_a_special_tokens_name_in_a_text_is_text() -> None:
    model = Mean(None)
    embed(model, WORDS, "[SEP]")
    (row,) = model.rows
    assert row[-1] == SEP
    assert SEP not in row[:-1]


def test_batches_are_within_the_budget() -> None:
    model = Mean(None)
    embed(model, WORDS, TEXTS * 5, budget=30)
    assert all(sum(map(len, rows)) <= 30 or len(rows) == 1 for rows in model.batches)
    assert len(model.rows) == len(TEXTS) * 5


def test_length_one_as_the_head_says_or_as_asked() -> None:
    raw, normed = embed(PLAIN, WORDS, TEXTS).vectors, embed(PLAIN, WORDS, TEXTS, normalize=True).vectors
    np.testing.assert_allclose(normed, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.01
    np.testing.assert_allclose(embed(MODEL, WORDS, TEXTS).vectors, normed, atol=1e-6)


def test_in_bfloat16_the_vectors_are_still_float32_of_length_one() -> None:
    half = tiny(spec.Pool(how="mean", normalize=True)).bfloat16()
    vectors = embed(half, WORDS, TEXTS).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * embed(MODEL, WORDS, TEXTS).vectors).sum(1).min() > 0.999


def test_a_model_in_training_embeds_without_dropout_and_stays_in_training() -> None:
    model = tiny(spec.Pool(how="mean", normalize=True), dropout=0.5).train()
    np.testing.assert_allclose(embed(model, WORDS, TEXTS).vectors, embed(MODEL, WORDS, TEXTS).vectors, atol=1e-6)
    assert model.training


def test_progress_ends_with_everything() -> None:
    heard: list[tuple[int, ...]] = []
    done = embed(PLAIN, WORDS, [*TEXTS, LONG], on_long="chunk", budget=20, progress=lambda *said: heard.append(said))
    assert heard == sorted(heard)
    assert len(heard) > 3
    assert heard[-1] == (len(TEXTS) + 1, done.tokens, done.tokens)


def test_vectors_can_go_to_an_array_that_is_there(tmp_path: Path) -> None:
    out = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (len(TEXTS), DIM))
    assert embed(MODEL, WORDS, TEXTS, out=out).vectors is out
    out.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), embed(MODEL, WORDS, TEXTS).vectors)


# --- what a folder says ---

PROMPTS = {"query": "query: ", "none": ""}


def test_prompts_go_before_every_text() -> None:
    says = Sentence(spec.Pool(), prompts=PROMPTS, default_prompt="query")
    expected = embed(PLAIN, WORDS, ["query: fox"]).vectors
    for given_ in ({"sentence": says}, {"sentence": says, "prompt_name": "query"}, {"prompt": "query: "}):
        np.testing.assert_array_equal(embed(PLAIN, WORDS, ["fox"], **given_).vectors, expected)
    plain = embed(PLAIN, WORDS, ["fox"]).vectors
    for given_ in ({"prompt": ""}, {"prompt_name": "none"}):
        np.testing.assert_array_equal(embed(PLAIN, WORDS, ["fox"], says, **given_).vectors, plain)


def test_small_letters_where_the_folder_says_so() -> None:
    cased = tokenizer()
    cased._backend.raw.normalizer = None
    says = Sentence(spec.Pool(), lower=True)
    small = embed(PLAIN, cased, ["the fox", "query: x"]).vectors
    found = embed(PLAIN, cased, ["The FOX", "X"], says, prompt=None).vectors
    np.testing.assert_array_equal(found[0], small[0])
    np.testing.assert_array_equal(embed(PLAIN, cased, ["X"], says, prompt="QUERY: ").vectors[0], small[1])


@pytest.mark.parametrize(
    ("said", "length", "limit"),
    [(None, None, POSITIONS), (20, None, 20), (999, None, POSITIONS), (20, 30, 30), (None, 7, 7)],
)
def test_the_limit_is_the_folders_the_models_or_what_is_asked_for(said: Any, length: Any, limit: int) -> None:
    sentence = None if said is None else Sentence(spec.Pool(), said)
    assert embed(PLAIN, WORDS, LONG, sentence, length=length, on_long="truncate").limit == limit


# --- what is too long ---


def test_a_text_that_is_too_long_is_an_error_with_the_way_out() -> None:
    with pytest.raises(
        TooLong, match=r"texts\[1\] has 112 tokens, and 48 are read \(this model's learned positions\); on"
    ):
        embed(MODEL, WORDS, ["fox", LONG])
    with pytest.raises(TooLong, match=r"and 9 are read \(as its folder says\)") as caught:
        embed(MODEL, WORDS, [LONG], Sentence(spec.Pool(), 9), name="row {}".format)
    assert "on_long='chunk' averages" in str(caught.value)
    assert caught.value.what.startswith("row 0 has 112 tokens")


def test_truncating_keeps_the_special_tokens_and_says_what_was_cut() -> None:
    ids = framed(LONG)
    done = embed(PLAIN, WORDS, ["fox", LONG], on_long="truncate", length=10)
    np.testing.assert_allclose(done.vectors[1], own(PLAIN, [*ids[:9], SEP]), atol=1e-6)
    assert done.long == (Long(1, len(ids), len(ids) - 10, 1),)
    assert done.note() == "1 longer than 10 tokens: cut by 102 of their 112 tokens; the longest is texts[1], with 112"


texts_of = st.lists(st.integers(0, 30).map(lambda n: "fox x " * n), min_size=1, max_size=6)


@given(texts_of, st.integers(4, 20), st.sampled_from(["", "query: "]))
def test_windows_hold_every_token_once_each_behind_the_prompt(texts: list[str], length: int, prompt: str) -> None:
    length += 2 * len(prompt)
    model = Mean(length)
    done = embed(model, WORDS, texts, on_long="chunk", prompt=prompt, budget=1)
    before = WORDS.encode(prompt, special=False)
    bodies = {i: WORDS.encode(text, special=False) for i, text in enumerate(texts)}
    long = {text.index: text for text in done.long}
    assert set(long) == {i for i, body in bodies.items() if len(body) + len(before) + 2 > length}
    assert sum(map(len, model.rows)) == done.tokens
    for row in model.rows:
        assert (row[0], row[-1]) == (CLS, SEP)
        assert row[1 : 1 + len(before)] == before
        assert len(row) <= length
    assert sum(len(row) - 2 - len(before) for row in model.rows) == sum(map(len, bodies.values()))
    for i, body in bodies.items():
        windows = long[i].windows if i in long else 1
        ends = [len(body) * k // windows for k in range(windows + 1)]
        parts = [body[a:b] for a, b in pairwise(ends)]
        means = [np.mean([CLS, *before, *part, SEP]) for part in parts]
        expected = np.average(means, weights=list(map(len, parts))) if body else means[0]
        assert done.vectors[i, 0] == pytest.approx(expected, rel=1e-5)


def test_windows_are_averaged_and_then_brought_to_length_one() -> None:
    ids = framed(LONG)[1:-1]
    parts = [own(MODEL, [CLS, *part, SEP]) for part in (ids[:36], ids[36:73], ids[73:])]
    done = embed(MODEL, WORDS, LONG, on_long="chunk")
    mean = np.average(parts, axis=0, weights=[36, 37, 37])
    np.testing.assert_allclose(done.vectors, mean / np.linalg.norm(mean), atol=1e-6)
    assert done.long == (Long(0, 112, 0, 3),)
    assert done.note() == "1 longer than 48 tokens: averaged over 3 windows; the longest is texts[0], with 112"


# --- what is refused ---


def bare() -> Any:
    """A tokenizer that puts nothing around a text."""
    words = tokenizer()
    words._backend.raw.post_processor = None
    return qkv.inputs.text.Tokenizer(words._backend.raw)


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        (["a", "\ud800"], {}, "lone surrogate"),
        (["a", 3], {}, "a text must be a string, got int"),
        (None, {}, "texts must be a text or a list of texts, got None"),
        (b"abc", {}, "texts must be"),
        ("a", {"on_long": "window"}, "on_long is 'window', none of error, truncate, chunk"),
        ("a", {"budget": 0}, "budget must be a whole number from 1, got 0"),
        ("a", {"budget": "5"}, "budget must be a whole number from 1, got '5'"),
        ("a", {"length": 49}, r"length must lie in 1..48 \(this model's learned positions\), got 49"),
        ("a", {"length": 0}, "length must be a whole number from 1, got 0"),
        ("a", {"length": 5.5}, "length must be a whole number from 1, got 5.5"),
        ("fox", {"length": 2, "on_long": "truncate"}, "2 tokens .* leave no room beside the prompt"),
        ("fox", {"length": 4, "on_long": "chunk", "prompt": "query: "}, "leave no room beside the prompt"),
        ("a", {"normalize": False}, "normalize=False: this model's head makes"),
        ("a", {"prompt_name": "query"}, "no prompt named 'query'; it has: none"),
        ("a", {"prompt_name": "x", "prompt": "y"}, "give one of them"),
    ],
)
def test_wrong_input_is_named(texts: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        embed(MODEL, WORDS, texts, **options)


def test_a_text_without_tokens_is_named() -> None:
    with pytest.raises(InputError, match=r"texts\[1\], '', has no token: there is nothing to read"):
        embed(MODEL, bare(), ["fox", "", "fox"])


def test_a_model_without_a_pooling_head_or_a_tokenizer_says_the_way_out() -> None:
    with pytest.raises(InputError, match=r'head is States.*qkv\.load\(ref, new_head="pool"\)'):
        embed(tiny(spec.States()), WORDS, "fox")
    with pytest.raises(InputError, match="no tokenizer"):
        embed(MODEL, None, "fox")


def test_a_vector_that_is_not_finite_is_named() -> None:
    broken = tiny(spec.Pool())
    with torch.no_grad():
        broken.encoder.embed.tokens.weight[WORDS.id("fox")] = torch.nan
    with pytest.raises(InputError, match=r"texts\[2\] gives a vector that is not finite.*qkv verify"):
        embed(broken, WORDS, ["a", "b", "fox"])


# --- beside sentence-transformers ---


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_sentence_transformers(tmp_path: Path, pooling: str, normalize: bool) -> None:
    folder = sentence_folder(tmp_path, pooling, normalize)
    model = qkv.load(folder)
    texts = [*TEXTS, LONG]
    np.testing.assert_allclose(model.embed(texts, on_long="truncate"), theirs(folder, texts), atol=1e-5)
    np.testing.assert_allclose(model.embed("fox"), theirs(folder, ["fox"])[0], atol=1e-5)


def test_prompts_and_length_are_sentence_transformers(tmp_path: Path) -> None:
    options = {"prompts": {"query": "query: ", "short": "x"}, "default_prompt_name": "query"}
    folder = sentence_folder(tmp_path, max_seq_length=11, **options)
    model, texts = qkv.load(folder), [*TEXTS, LONG]
    np.testing.assert_allclose(model.embed(texts, on_long="truncate"), theirs(folder, texts), atol=1e-5)
    expected = theirs(folder, texts, prompt_name="short")
    np.testing.assert_allclose(model.embed(texts, on_long="truncate", prompt_name="short"), expected, atol=1e-5)


def test_saved_it_is_the_same_folder_to_both_libraries(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path, "max", True, max_seq_length=30, prompts={"query": "query: "})
    model = qkv.load(folder)
    saved = qkv.save(model, tmp_path / "saved")
    again = qkv.load(saved)
    assert again.sentence == model.sentence
    np.testing.assert_allclose(again.embed(TEXTS), model.embed(TEXTS), atol=1e-6)
    np.testing.assert_allclose(theirs(saved, TEXTS), model.embed(TEXTS), atol=1e-5)


def varied(count: int = 500) -> list[str]:
    """Sentences of all lengths and scripts: the same each time."""
    random.seed(0)
    english = [
        *"aI",
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "you",
        "that",
        "he",
        "was",
        "for",
        "man",
        "guitar",
        "market",
    ]
    scripts = [
        "日本語の文章",
        "Привет, мир",
        "مرحبا بالعالم",
        "שלום עולם",
        "नमस्ते दुनिया",
        "Ünïcödé naïve café",
        "한국어 문장",
    ]
    signs = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "→", "½", "…", "—", "#42", "3.14", "http://a.b/c?d=e", "@user", "\t", "\u200b"]
    texts = [
        "",
        " ",
        "a",
        "I",
        "!",
        "😀",
        "日",
        "\n",
        "ﬁ",
        "İstanbul",
        " ".join(english * 40),
        "antidisestablishmentarianism" * 9,
    ]
    while len(texts) < count:
        pool = random.choice([english, english + signs, scripts, scripts + signs + english])
        text = " ".join(random.choices(pool, k=random.choice([1, 2, 3, 5, 8])))
        texts += [text] if text not in texts else []
    return texts


@pytest.fixture(scope="module")
def minilm() -> Iterator[Any]:
    """The real model: fetched as a user's first command would, then cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield qkv.load("minilm")


def test_minilm_agrees_with_sentence_transformers_on_500_sentences(minilm: Any) -> None:
    texts = varied()
    ours, expected = minilm.embed(texts, on_long="truncate"), theirs(minilm.source.path, texts)
    assert (ours * expected).sum(1).min() >= 0.9999
    assert np.abs(ours - expected).max() < 1e-5
    assert len(texts) == len(set(texts)) == 500
    for i in range(0, len(texts), 9):
        assert np.abs(minilm.embed(texts[i], on_long="truncate") - ours[i]).max() < 1e-6


def test_minilm_knows_what_is_near(minilm: Any) -> None:
    a, b, c = minilm.embed(["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell."])
    assert a @ b > 0.5 > a @ c
