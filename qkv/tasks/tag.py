"""Spans of a text with labels (named entities, parts of speech), from a label for each token."""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.encoded import Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.tasks.forward import Texts, check_labels, head_of, name, outputs, pieces_of, single
from qkv.tasks.result import Span, Tagged
from qkv.tasks.windows import Window, limit, trim, windows

Strategy = Literal["first", "max", "mean", "none"]
STRATEGIES = ("first", "max", "mean", "none")
_SCHEME = re.compile(r"([BIESLUM])-(.+)")  # IOB2, IOBES, BILOU, BMES
_OUTSIDE = "O"


class _Word(NamedTuple):
    """Characters with one label, and its probability."""

    start: int
    end: int
    label: str
    score: float


def tag(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Texts,
    *,
    strategy: Strategy = "first",
    window: int | None = None,
    stride: int | None = None,
) -> list[Tagged]:
    """The spans of each text by a `Tag` head.

    A word (the tokenizer's: cut at spaces and mostly at punctuation) has one label: "first": that of its first token,
    on which such models are trained; "max": of its surest token; "mean": of its tokens' mean probabilities. Neighbours
    are one span where the labels say so: B- and S- begin one, E- ends one, and labels without such letters go on while
    they are the same. "none" leaves each token alone, with its label as it is. What is labelled "O" is no span.

    A text longer than the model can read (or than `window` tokens) is read in windows that share `stride` tokens; each
    token's label is from the window where it has the most text around it. InputError: another head, a text without
    tokens, a stride that isn't less than a window."""
    head = head_of(model, spec.Tag)
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}, none of {', '.join(STRATEGIES)}")
    most = limit(model.spec, window, stride)
    pieces = [pieces for (pieces,) in pieces_of(tokenizer, single(texts, "tagging"))]
    frame = tokenizer.frame(1)
    cut = [windows(frame, [p], 0, most, name(i, texts)) for i, p in enumerate(pieces)]
    owners = [(i, w) for i, own in enumerate(cut) for w in range(len(own))]
    logits: list[list[Tensor]] = [[torch.empty(0)] * len(own) for own in cut]
    for row, out in outputs(model, [cut[i][w].encoded for i, w in owners]):
        check_labels(head.labels, out)
        i, w = owners[row]
        logits[i][w] = out[cut[i][w].encoded.places(0)]
    found = []
    for (text,), own, tokens, parts in zip(texts, cut, pieces, logits, strict=True):
        scores = best_context(own, parts).softmax(-1)
        found.append(Tagged(text, tuple(_spans(text, tokens, scores, head.labels, strategy)), len(own)))
    return found


def best_context(cut: Sequence[Window], parts: Sequence[Tensor]) -> Tensor:
    """Windows' rows [window, …] → the text's rows [tokens, …], each from the window where it is farthest from an edge
    that isn't the text's own."""
    length = cut[-1].tokens.stop
    rows = parts[0].new_zeros(length, *parts[0].shape[1:])
    best = torch.full((length,), -1)
    for window, part in zip(cut, parts, strict=True):
        here = slice(window.tokens.start, window.tokens.stop)
        tokens = torch.arange(here.start, here.stop)
        left = tokens - here.start if here.start else length
        right = here.stop - 1 - tokens if here.stop < length else length
        margin = torch.minimum(torch.as_tensor(left), torch.as_tensor(right)).expand(len(tokens))
        better = margin > best[here]
        best[here] = torch.where(better, margin, best[here])
        rows[here][better] = part[better]
    return rows


def _spans(text: str, tokens: Pieces, scores: Tensor, labels: tuple[str, ...], strategy: Strategy) -> Iterator[Span]:
    if strategy == "none":
        words = [_word(tokens, [i], scores[i], labels) for i in range(len(tokens))]
        groups = [(word.label, [word]) for word in words]
    else:
        words = [_word(tokens, own, _one(scores[own], strategy), labels) for own in word_tokens(text, tokens)]
        groups = merge(words)
    for label, group in groups:
        start, end = trim(text, group[0].start, group[-1].end)
        if label != _OUTSIDE and start < end:
            yield Span(label, start, end, text[start:end], sum(word.score for word in group) / len(group))


def word_tokens(text: str, tokens: Pieces) -> list[list[int]]:
    """The tokens of each word. Where the tokenizer has no words of its own, or they run on over spaces (SentencePiece's
    kind may take a whole text for one), a space begins another."""
    words: list[list[int]] = []
    before = 0
    for i, (start, end) in enumerate(tokens.offsets):
        spaced = any(map(str.isspace, text[before : trim(text, start, end)[0]]))
        if i == 0 or tokens.words[i] != tokens.words[i - 1] or spaced:
            words.append([])
        words[-1].append(i)
        before = end
    return words


def _one(scores: Tensor, strategy: Strategy) -> Tensor:
    """A word's tokens [T, labels] → the word [labels]."""
    if strategy == "mean":
        return scores.mean(0)
    return scores[scores.amax(-1).argmax()] if strategy == "max" else scores[0]


def _word(tokens: Pieces, own: list[int], scores: Tensor, labels: tuple[str, ...]) -> _Word:
    best = int(scores.argmax())
    return _Word(tokens.offsets[own[0]][0], tokens.offsets[own[-1]][1], labels[best], float(scores[best]))


def merge(words: Sequence[_Word]) -> list[tuple[str, list[_Word]]]:
    """Words that are one span, with its label."""
    groups: list[tuple[str, list[_Word]]] = []
    ended = True
    for word in words:
        found = _SCHEME.fullmatch(word.label)
        letter, label = found.groups() if found else ("I", word.label)
        if ended or letter in "BSU" or groups[-1][0] != label:
            groups.append((label, []))
        groups[-1][1].append(word)
        ended = letter in "ESLU"
    return groups
