"""Texts to vectors: read in batches of like lengths, nothing padded, nothing cut unless asked for and told."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qkv import spec
from qkv.errors import InputError
from qkv.inputs.text import Tokenizer
from qkv.load.sentence import Sentence
from qkv.nn.modes import evaluating
from qkv.nn.stack import Transformer
from qkv.tasks.batches import by_length
from qkv.tasks.forward import check_count
from qkv.tasks.windows import Limit, limit

BUDGET = 4096  # tokens read at once
ON_LONG = ("error", "truncate", "chunk")
ENCODED = 1024  # texts given to the tokenizer at once, whose threads share them
NORMED = 65536  # rows brought to length 1 at once, of an array that may lie in a file

Vectors = NDArray[np.float32]
Name = Callable[[int], str]  # what a text is called, by its index
Progress = Callable[[int, int, int], None]


class TooLong(InputError):
    """A text of more tokens than are read at once. `what` says so without the way out."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}; on_long='truncate' cuts off its end, on_long='chunk' averages windows over all of it"
        )
        self.what = what


@dataclass(frozen=True)
class Long:
    """A text beyond the limit. tokens: all it has, special ones included; dropped: those that were cut off; windows:
    in how many parts it was read."""

    index: int
    tokens: int
    dropped: int
    windows: int


@dataclass(frozen=True)
class Embeddings:
    """vectors: float32 [texts, dim] in the order of the texts, [dim] for one text. tokens: those that the model read.
    limit: at most so many at once (None: any number). long: the texts beyond it, and what became of them."""

    vectors: Vectors
    tokens: int
    limit: int | None
    long: tuple[Long, ...] = ()

    def note(self, name: Name = "texts[{}]".format) -> str | None:
        """What was cut or chunked, in a sentence; None where nothing was."""
        if not self.long:
            return None
        most = max(self.long, key=lambda text: text.tokens)
        tokens, windows = sum(text.tokens for text in self.long), sum(text.windows for text in self.long)
        dropped = sum(text.dropped for text in self.long)
        done = f"cut by {dropped:,} of their {tokens:,} tokens" if dropped else f"averaged over {windows:,} windows"
        longest = f"the longest is {name(most.index)}, with {most.tokens:,}"
        return f"{len(self.long):,} longer than {self.limit:,} tokens: {done}; {longest}"


def embed(
    model: Transformer,
    tokenizer: Tokenizer | None,
    texts: str | Iterable[str],
    sentence: Sentence | None = None,
    *,
    length: int | None = None,
    on_long: str = "error",
    prompt: str | None = None,
    prompt_name: str | None = None,
    normalize: bool | None = None,
    budget: int = BUDGET,
    out: Vectors | None = None,
    name: Name = "texts[{}]".format,
    progress: Progress | None = None,
) -> Embeddings:
    """One vector a text, by the model's Pool head. The same text gives the same vector alone and among others.

    `sentence`: what its sentence-transformers folder says. `length`: tokens that a text may have, special ones
    included (None: as the folder says, and never more than the model has positions). `on_long`, beyond that: "error";
    "truncate" drops the last tokens before the closing special ones, as sentence-transformers does; "chunk" reads
    windows of about equal length, each behind the prompt, and averages their vectors by their numbers of tokens.
    `prompt` goes before every text, `prompt_name` is one of the folder's (both None: the folder's default).
    `normalize`: vectors of length 1 (None: as the head says). `budget`: tokens in a batch, more in a text alone.
    `out`: zeros [texts, dim] to write to. `name`: what errors call a text. `progress` hears after each batch how many
    texts and tokens are done, and of how many tokens.

    Of an empty text the special tokens are read. A special token's name in a text is text, as everywhere in qkv (to
    sentence-transformers "[SEP]" is the token). InputError: no Pool head, no tokenizer, a text that is too long or
    has no tokens at all, a vector that is not finite, or a wrong argument."""
    head = _head(model)
    if tokenizer is None:
        raise InputError("this model has no tokenizer, so it can't read texts; m(ids) gives vectors of ids")
    if normalize is False and head.normalize:
        raise InputError("normalize=False: this model's head makes every vector of length 1")
    check_count("budget", budget)
    if on_long not in ON_LONG:
        raise InputError(f"on_long is {on_long!r}, none of {', '.join(ON_LONG)}")
    rows = [texts] if isinstance(texts, str) else _rows(texts)
    before = _prompt(sentence, prompt, prompt_name)
    lower = sentence is not None and sentence.lower
    reader = _Reader(tokenizer, _limit(model, sentence, length), on_long, before, lower, name)
    parts = list(reader.parts(rows))
    vectors = np.zeros((len(rows), model.spec.dim), np.float32) if out is None else out
    with torch.no_grad(), evaluating(model):
        _fill(vectors, model, parts, budget, name, progress)
    if head.normalize or normalize:  # in float32, whatever the model computes in; and again what was averaged
        for start in range(0, len(rows), NORMED):
            some = vectors[start : start + NORMED]
            some /= np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
    tokens = sum(len(part.ids) for part in parts)
    return Embeddings(vectors[0] if isinstance(texts, str) else vectors, tokens, reader.limit.size, tuple(reader.long))


def _head(model: Transformer) -> spec.Pool:
    head = model.spec.head
    if not isinstance(head, spec.Pool):
        raise InputError(
            f"this model's head is {type(head).__name__}, which gives no vector a text; "
            'qkv.load(ref, new_head="pool") puts a mean over the states in its place'
        )
    return head


def _rows(texts: Any) -> list[str]:
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise InputError(f"texts must be a text or a list of texts, got {texts!r:.60}")
    return list(texts)


def _prompt(sentence: Sentence | None, prompt: str | None, name: str | None) -> str:
    if prompt is not None and name is not None:
        raise InputError("prompt and prompt_name both say what goes before the texts; give one of them")
    if prompt is not None:
        return prompt
    prompts = sentence.prompts if sentence else {}
    name = name if name is not None or sentence is None else sentence.default_prompt
    if name is not None and name not in prompts:
        raise InputError(f"this model has no prompt named {name!r}; it has: {', '.join(prompts) or 'none'}")
    return prompts[name] if name is not None else ""


def _limit(model: Transformer, sentence: Sentence | None, length: int | None) -> Limit:
    most = limit(model.spec)
    if length is None:
        said = sentence.length if sentence else None
        return most if said is None or (most.size or said) < said else Limit(said, "as its folder says")
    check_count("length", length)
    if length > (most.size or length):
        raise InputError(f"length must lie in 1..{most.size or '∞'} ({most.why}), got {length}")
    return Limit(length, "the length asked for")


@dataclass(frozen=True)
class _Part:
    """A text or a window of it: `share` of the vector of text number `owner`."""

    ids: Tensor
    owner: int
    share: float = 1.0


class _Reader:
    """Texts to parts that the model can read. `long` grows with what it met."""

    def __init__(self, tokenizer: Tokenizer, limit: Limit, on_long: str, prompt: str, lower: bool, name: Name) -> None:
        self.tokenizer, self.limit, self.on_long, self.name = tokenizer, limit, on_long, name
        self.frame, self.prompt = tokenizer.frame(), prompt
        self.prepare: Callable[[str], str] = _lowered if lower else str
        self.long: list[Long] = []

    def parts(self, texts: Sequence[str]) -> Iterator[_Part]:
        for start in range(0, len(texts), ENCODED):
            found = self.tokenizer.encode_batch(map(self._whole, texts[start : start + ENCODED]), special=False)
            for i, ids in enumerate(found, start):
                tokens = len(ids) + self.frame.added
                if not tokens:
                    raise InputError(f"{self.name(i)}, {texts[i]!r:.60}, has no token: there is nothing to read")
                if self.limit.size is None or tokens <= self.limit.size:
                    yield _Part(_row(self.frame.ids(ids)), i)
                else:
                    yield from self._long(i, ids, self.limit.size)

    def _whole(self, text: str) -> str:
        """With the prompt. (What is no string is left for the tokenizer to refuse.)"""
        return self.prepare(self.prompt + text) if isinstance(text, str) else text

    def _long(self, index: int, ids: list[int], size: int) -> Iterator[_Part]:
        tokens = len(ids) + self.frame.added
        if self.on_long == "error":
            raise TooLong(f"{self.name(index)} has {tokens:,} tokens, and {size:,} are read ({self.limit.why})")
        again: list[int] = []
        if self.on_long == "chunk":
            again = _common(ids, self.tokenizer.encode(self.prepare(self.prompt), special=False))
            ids = ids[len(again) :]
        room = size - self.frame.added - len(again)
        if room < 1:
            raise InputError(f"{size} tokens ({self.limit.why}) leave no room beside the prompt and special ones")
        if self.on_long == "truncate":
            self.long.append(Long(index, tokens, tokens - size, 1))
            yield _Part(_row(self.frame.ids(ids[:room])), index)
            return
        windows = ceil(len(ids) / room)
        self.long.append(Long(index, tokens, 0, windows))
        ends = [len(ids) * i // windows for i in range(windows + 1)]
        for a, b in pairwise(ends):
            yield _Part(_row(self.frame.ids(again + ids[a:b])), index, (b - a) / len(ids))


def _lowered(text: str) -> str:
    """As sentence-transformers does for `do_lower_case`: by the tokenizer library, which differs from Python's lower
    in a few letters (a final Σ)."""
    from tokenizers.normalizers import Lowercase

    return str(Lowercase().normalize_str(text))


def _row(ids: list[int]) -> Tensor:
    """A tenth of the memory of a list."""
    return torch.tensor(ids, dtype=torch.int32)


def _common(a: list[int], b: list[int]) -> list[int]:
    """How both begin."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def _fill(
    vectors: Vectors,
    model: Transformer,
    parts: Sequence[_Part],
    budget: int,
    name: Name,
    progress: Progress | None,
) -> None:
    """Add each part's share to its text's vector."""
    lengths = [len(part.ids) for part in parts]
    left = np.bincount([part.owner for part in parts], minlength=len(vectors))
    texts, tokens, total = 0, 0, sum(lengths)
    for group in by_length(lengths, budget):
        pooled = torch.stack(model([parts[i].ids for i in group])).float().cpu().numpy()
        for i, vector in zip(group, pooled, strict=True):
            owner = parts[i].owner
            if not np.isfinite(vector).all():
                raise InputError(
                    f"{name(owner)} gives a vector that is not finite: the weights hold NaN or infinity (`qkv verify` "
                    "tells), or they overflow in this dtype"
                )
            vectors[owner] += parts[i].share * vector
            left[owner] -= 1
            texts += not left[owner]
        tokens += sum(lengths[i] for i in group)
        if progress is not None:
            progress(texts, tokens, total)
