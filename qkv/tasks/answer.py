"""Answers to a question that stand in a context, word for word (BERT, arXiv 1810.04805, §4.2 and §4.3)."""

from collections.abc import Iterator
from itertools import islice

from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Encoded
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.tasks.forward import Texts, check_count, head_of, name, outputs, pieces_of
from qkv.tasks.result import Answer, Answered
from qkv.tasks.windows import limit, trim, windows


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Texts,
    *,
    top: int = 1,
    max_answer: int = 15,
    no_answer: bool = False,
    window: int | None = None,
    stride: int | None = None,
) -> list[Answered]:
    """The `top` answers to each (question, context) by a `Span` head, as characters of the context.

    An answer's score is p(first token) · p(last token), each a softmax over the context and [CLS], as in transformers'
    pipeline; it has at most `max_answer` tokens. `no_answer`: that there is none is an answer too, "", with [CLS]'s two
    probabilities. A context longer than the model can read (or than `window` tokens with the question) is read in
    windows that share `stride` tokens; the best of all count, and of no answer the least of all.

    InputError: another head, a question without context, a text without tokens, a question that leaves no room, a model
    whose tokenizer has no [CLS] asked for `no_answer`."""
    head_of(model, spec.Span)
    check_count("top", top)
    check_count("max_answer", max_answer)
    if no_answer and tokenizer.cls is None:
        raise InputError("no_answer needs a [CLS] token, which scores it; this model's tokenizer has none")
    if any(len(pair) != 2 for pair in texts):
        raise InputError("this model answers a question about a context: give the context as the second text")
    most = limit(model.spec, window, stride)
    frame = tokenizer.frame(2)
    cut = [windows(frame, pair, 1, most, name(i, texts)) for i, pair in enumerate(pieces_of(tokenizer, texts))]
    flat = [(i, window.encoded) for i, own in enumerate(cut) for window in own]
    found: list[list[Answer]] = [[] for _ in texts]
    none = [1.0] * len(texts)
    for row, logits in outputs(model, [encoded for _, encoded in flat]):
        if logits.shape[-1] != 2:
            raise InputError(f"a Span head gives a start and an end a token; this one gives {logits.shape[-1]} numbers")
        i, encoded = flat[row]
        cls = encoded.ids.index(tokenizer.cls) if tokenizer.cls in encoded.ids else None
        table, nothing = spans(logits, encoded.places(1), cls, max_answer)
        found[i] += islice(_answers(texts[i][1], encoded, table), top)
        none[i] = min(none[i], nothing)
    if no_answer:
        found = [[*own, Answer("", 0, 0, score)] for own, score in zip(found, none, strict=True)]
    return [
        Answered(question, _best(own, top, name(i, texts)), len(cut[i]))
        for i, ((question, _), own) in enumerate(zip(texts, found, strict=True))
    ]


def spans(logits: Tensor, context: list[int], cls: int | None, longest: int) -> tuple[Tensor, float]:
    """logits [T, 2] → scores [L, N] of answers of 1..longest tokens from each of the context's N tokens on (−1: it
    would end beyond it), and the score of there being none."""
    first = [] if cls is None else [cls]
    scores = logits[[*first, *context]].softmax(0)
    start, end = scores[len(first) :].unbind(-1)
    n = len(context)
    table = logits.new_full((min(longest, n), n), -1.0)
    for more in range(len(table)):
        table[more, : n - more] = start[: n - more] * end[more:]
    return table, float(scores[0].prod()) if first else 0.0


def _answers(context: str, encoded: Encoded, table: Tensor) -> Iterator[Answer]:
    """The answers, best first, each stretch of characters once."""
    offsets = [offset for offset, part in zip(encoded.offsets, encoded.parts, strict=True) if part == 1 and offset]
    seen = set()
    scores, order = table.flatten().sort(descending=True, stable=True)
    for score, place in zip(scores.tolist(), order.tolist(), strict=True):
        more, first = divmod(place, table.shape[1])
        if score < 0:
            return
        at = trim(context, offsets[first][0], offsets[first + more][1])
        if at[0] < at[1] and at not in seen:
            seen.add(at)
            yield Answer(context[slice(*at)], *at, score)


def _best(answers: list[Answer], top: int, what: str) -> tuple[Answer, ...]:
    """InputError: there are none at all."""
    once: dict[tuple[int, int], Answer] = {}
    for one in sorted(answers, key=lambda a: -a.score):
        once.setdefault((one.start, one.end), one)
    if not once:
        raise InputError(f"{what}: its context is blank, so no answer can stand in it")
    return tuple(islice(once.values(), top))
