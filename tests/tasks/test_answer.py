"""Answers are the best of all spans, found by trying each; their characters are the context's."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.tasks.answer import answer, spans
from qkv.tasks.predict import predict
from qkv.tasks.windows import limit, windows
from tests.tasks.fakes import Fake, asking, bert, by_id, theirs, wordpiece

QUESTION = "Who lives in Paris?"
CONTEXT = "Paris is the capital of France, and Berlin that of Germany. 😀 Anna Smith lives in New York with Bob."
SHORT = "Anna is in Paris 😀 and Bob."


def model(compute: Any, **changes: Any) -> Any:
    return Fake(bert(spec.Span(), wordpiece().vocab_size, **changes), compute)


def tried(
    asked: Any, tokenizer: Tokenizer, question: str, context: str, longest: int, **cut: int
) -> tuple[dict[tuple[int, int], float], float]:
    """By trying all, window by window: the score of each stretch of characters, and of no answer (as transformers 4's
    question-answering pipeline: softmax over the context and [CLS], and the product)."""
    texts = tokenizer.pieces([question, context])
    found: dict[tuple[int, int], float] = {}
    none = 1e6
    for window in windows(tokenizer.frame(2), texts, 1, limit(asked.spec, **cut), ""):
        encoded = window.encoded
        logits = asked.compute(encoded.ids, encoded.segments)
        open_ = torch.tensor([part == 1 or i == 0 for i, part in enumerate(encoded.parts)])
        p = logits.masked_fill(~open_[:, None], -1e4).softmax(0)
        none = min(none, float(p[0, 0] * p[0, 1]))
        for i in encoded.places(1):
            for j in encoded.places(1):
                if i <= j < i + longest:
                    at = (encoded.offsets[i][0], encoded.offsets[j][1])  # type: ignore[index]
                    found[at] = max(found.get(at, 0.0), float(p[i, 0] * p[j, 1]))
    return found, none


@pytest.mark.parametrize("cut", [{}, {"window": 40, "stride": 9}, {"window": 36, "stride": 0}], ids=str)
@pytest.mark.parametrize("longest", [1, 4, 15])
def test_answers_are_the_best_of_all_spans(cut: dict[str, int], longest: int, tmp_path: Any) -> None:
    """On a random BERT of transformers."""
    reference, _ = theirs(tmp_path, wordpiece(), "QuestionAnswering")
    asked = model(asking(reference, "start_logits", "end_logits"), length=64 if cut else 200)
    context = SHORT if not cut else CONTEXT
    scores, none = tried(asked, wordpiece(), QUESTION, context, longest, **cut)
    got = predict(asked, wordpiece(), QUESTION, context, top=4, max_answer=longest, **cut)
    want = sorted(scores.items(), key=lambda pair: -pair[1])[:4]
    assert [(one.start, one.end) for one in got.answers] == [at for at, _ in want]
    assert [one.score for one in got.answers] == pytest.approx([score for _, score in want], rel=1e-4)
    assert all(one.text == context[one.start : one.end] for one in got.answers)
    assert got.windows > 1 or not cut
    both = predict(asked, wordpiece(), QUESTION, context, top=99999, max_answer=longest, no_answer=True, **cut)
    assert len(both.answers) == len(scores) + 1
    assert next(one for one in both.answers if not one.text).score == pytest.approx(none, rel=1e-4)
    assert [one.score for one in both.answers] == sorted((one.score for one in both.answers), reverse=True)


@given(n=st.integers(1, 12), longest=st.integers(1, 15), cls=st.booleans(), seed=st.integers(0, 99))
def test_the_table_of_spans(n: int, longest: int, cls: bool, seed: int) -> None:
    logits = torch.randn(n + 3, 2, generator=torch.Generator().manual_seed(seed))
    context = [*range(2, n + 2)]
    table, none = spans(logits, context, 0 if cls else None, longest)
    p = logits[[*([0] if cls else []), *context]].softmax(0)[1 if cls else 0 :]
    assert table.shape == (min(longest, n), n)
    for more in range(len(table)):
        for start in range(n):
            want = float(p[start, 0] * p[start + more, 1]) if start + more < n else -1.0
            assert float(table[more, start]) == pytest.approx(want)
    assert (none > 0) == cls


def pointing(start: str, end: str) -> Any:
    """A head that begins an answer at one token and ends it at another."""

    def compute(ids: list[int], _: list[int]) -> Tensor:
        logits = torch.zeros(len(ids), 2)
        for column, token in enumerate((start, end)):
            wanted = wordpiece().id(token)
            logits[[i for i, id in enumerate(ids) if id == wanted], column] = 9.0
        return logits

    return compute


def test_an_answer_is_in_the_context_alone_and_its_end_not_before_its_start() -> None:
    asked = model(pointing("a", "b"))
    found = predict(asked, wordpiece(), "a b", "x b a x x b x")
    assert (found.best.text, found.best.start, found.best.end) == ("a x x b", 4, 11)
    assert found.question == "a b"
    assert predict(asked, wordpiece(), "a b", "x b a x x b x", max_answer=3).best.text != "a x x b"
    late = "x " * 300 + "a y y b" + " x" * 200
    found = predict(asked, wordpiece(), "a b", late, top=2)
    assert (found.best.text, found.best.start) == ("a y y b", 600)
    assert found.windows > 5
    assert len({(one.start, one.end) for one in found.answers}) == 2


def test_offsets_count_characters() -> None:
    asked = model(pointing("a", "b"))
    for before in ("😀👩‍👩‍👧 ", "cafe\u0301 ", "日本語 ", "İ "):
        found = predict(asked, wordpiece(), "x", f"{before}a x b.").best
        assert (found.text, found.start) == ("a x b", len(before))


def test_no_answer_is_an_answer_only_where_it_is_asked_for() -> None:
    asked = model(pointing("[CLS]", "[CLS]"))
    found = predict(asked, wordpiece(), "who", "x y z", no_answer=True)
    assert (found.best.text, found.best.start, found.best.end) == ("", 0, 0)
    assert found.best.score > 0.9
    assert predict(asked, wordpiece(), "who", "x y z").best.text
    surer = predict(model(pointing("x", "y")), wordpiece(), "who", "x y z", no_answer=True, top=9)
    assert surer.best.text == "x y"
    assert sum(not one.text for one in surer.answers) == 1
    long = predict(model(pointing("x", "y")), wordpiece(), "who", "z " * 99 + "x y", no_answer=True)
    assert long.best.text == "x y"


def test_many_questions_and_contexts() -> None:
    asked = model(by_id(torch.randn(wordpiece().vocab_size, 2)))
    questions, contexts = [QUESTION, "Who?", "What is it?"], [CONTEXT, SHORT, CONTEXT * 3]
    assert predict(asked, wordpiece(), questions, contexts) == [
        predict(asked, wordpiece(), *pair) for pair in zip(questions, contexts, strict=True)
    ]
    assert predict(asked, wordpiece(), questions, SHORT)[2] == predict(asked, wordpiece(), questions[2], SHORT)


def test_wrong_input_is_named() -> None:
    asked, tokenizer = model(by_id(torch.zeros(300, 2))), wordpiece()
    with pytest.raises(InputError, match="a question about a context: give the context as the second text"):
        predict(asked, tokenizer, "who")
    with pytest.raises(InputError, match=r"the text: 80 tokens and 3 special ones leave no room for the rest in 64"):
        predict(asked, tokenizer, "a " * 80, "b")
    with pytest.raises(InputError, match=r"texts\[1\]: '' has no token"):
        predict(asked, tokenizer, ["who", "who"], ["a", ""])
    for name in ("top", "max_answer"):
        with pytest.raises(InputError, match=f"{name} must be a whole number from 1, got 0"):
            predict(asked, tokenizer, "who", "a", **{name: 0})
    with pytest.raises(InputError, match="a stride of 30 needs windows of more than that, and here 11 tokens fit"):
        predict(asked, tokenizer, "a " * 50, "b " * 50, stride=30)
    with pytest.raises(InputError, match="a Span head gives a start and an end a token; this one gives 3 numbers"):
        predict(model(by_id(torch.zeros(300, 3))), tokenizer, "who", "a")
    with pytest.raises(InputError, match="this needs a Span head; the model's is Tag"):
        answer(Fake(bert(spec.Tag(("A",)), 99), asked.compute), tokenizer, [("a", "b")])  # type: ignore[arg-type]


def test_a_tokenizer_without_cls(tokenizers: dict[str, Tokenizer]) -> None:
    asked = Fake(bert(spec.Span(), 400), by_id(torch.randn(400, 2)))
    assert predict(asked, tokenizers["bpe"], "Who", SHORT).best.text  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no_answer needs a \[CLS\] token"):
        predict(asked, tokenizers["bpe"], "Who", SHORT, no_answer=True)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the text: its context is blank"):
        predict(asked, tokenizers["bpe"], "Who", " \n ")  # type: ignore[arg-type]
