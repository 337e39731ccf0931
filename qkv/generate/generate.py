"""generate: prompts in whatever form, one answer each, at once or in pieces."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, Protocol, overload

from torch import Tensor

from qkv.errors import InputError
from qkv.generate.beam import beam_search
from qkv.generate.decode import End, Step, decode
from qkv.generate.result import Generation, Piece
from qkv.generate.sample import Choice
from qkv.generate.settings import Settings
from qkv.generate.speculate import Guesser
from qkv.generate.stop import Decoder
from qkv.nn.cache import Cache
from qkv.nn.stack import Transformer

Prompt = str | Sequence[int] | Tensor
Prompts = Prompt | Sequence[str] | Sequence[Sequence[int]] | Sequence[Tensor]


class Tokenizer(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...
    def stream(self, *, context: Iterable[int] = ()) -> Decoder: ...


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    settings: Settings,
    *,
    stream: Literal[False] = False,
    cache: Cache | None = None,
    guesser: Guesser | None = None,
) -> Generation | list[Generation]: ...
@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    settings: Settings,
    *,
    stream: bool,
    cache: Cache | None = None,
    guesser: Guesser | None = None,
) -> Any: ...
def generate(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Prompts,
    settings: Settings,
    *,
    stream: bool = False,
    cache: Cache | None = None,
    guesser: Guesser | None = None,
) -> Any:
    """Continue one prompt (text, ids, or a tensor [length]) or several (a list of these, or a tensor [batch, length]).

    One prompt gives a Generation, several a list of them in order; with `stream` an iterator of Pieces, those of
    several prompts interleaved. Without a tokenizer prompts must be ids, and texts are empty. `cache` and `guesser`: as
    in `decode`. InputError, before anything is computed: no prompt, an empty one, ids outside the vocabulary, a prompt
    beyond the context, a text without a tokenizer, settings that this model can't take, beams with `stream`, `cache` or
    `guesser`."""
    one = _is_one(prompts)
    each: list[Any] = [prompts] if one else list(prompts)
    if not each:
        raise InputError("no prompt was given")
    ids = [_encode(i, prompt, tokenizer) for i, prompt in enumerate(each)]
    # A decoder must know the prompt: some tokenizers write no space before the first token of a text.
    decoder = None if tokenizer is None else lambda before: tokenizer.stream(context=before)
    if settings.beams > 1:
        _check_search(settings, stream, cache, guesser)
        found = beam_search(model, ids, [settings] * len(ids), decoder=decoder)
        return found[0] if one else found
    steps = decode(model, ids, [settings] * len(ids), decoder=decoder, cache=cache, guesser=guesser)
    pieces = _pieces(steps, [_Answer(i, prompt) for i, prompt in enumerate(ids)], tokenizer is not None)
    if stream:
        return pieces
    answers = {piece.prompt_index: piece.generation for piece in pieces if piece.generation is not None}
    return answers[0] if one else [answers[i] for i in range(len(ids))]


def _check_search(settings: Settings, stream: bool, cache: Cache | None, guesser: Guesser | None) -> None:
    said = f"a search of {settings.beams} beams ({settings.source('beams')})"
    if stream:
        raise InputError(f"{said} knows its text only at the end, so it can't stream: give beams=1, or don't stream")
    if cache is not None:
        raise InputError(f"{said} takes no cache: give beams=1, or the whole prompt and no cache")
    if guesser is not None:
        raise InputError(f"{said} guesses nothing: give beams=1, or no draft")


def _is_one(prompts: Any) -> bool:
    """Is this one prompt (and not several)? What is neither counts as one, so that the error names it."""
    if isinstance(prompts, Tensor):
        return prompts.ndim < 2
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        return True
    return len(prompts) > 0 and isinstance(prompts[0], Integral)


def _encode(index: int, prompt: Any, tokenizer: Tokenizer | None) -> list[int]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError("this model has no tokenizer, so a prompt must be token ids and not text")
        return tokenizer.encode(prompt)
    if isinstance(prompt, Tensor):
        if prompt.ndim != 1:
            raise InputError(f"prompt {index} must be a row of token ids, got a tensor of shape {list(prompt.shape)}")
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence):
        raise InputError(f"prompt {index} must be text or token ids, got {type(prompt).__name__}")
    wrong = [x for x in prompt if isinstance(x, bool) or not isinstance(x, Integral)]
    if wrong:
        raise InputError(f"prompt {index} must hold token ids, which are whole numbers, got {wrong[0]!r}")
    return [int(x) for x in prompt]


@dataclass
class _Answer:
    """One prompt's answer so far. `waiting`: ids since its last piece."""

    index: int
    prompt: list[int]
    text: str = ""
    choices: list[Choice] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)

    def take(self, step: Step) -> None:
        self.text += step.text
        self.choices.append(step.choice)
        self.waiting.append(step.choice.token)

    def piece(self, step: Step) -> Piece:
        tokens, self.waiting = self.waiting, []
        return Piece(step.text, self.index, tokens, self.whole(step.end) if step.end is not None else None)

    def whole(self, end: End) -> Generation:
        logprobs = [c.logprob for c in self.choices if c.logprob is not None]
        tops = [c.top for c in self.choices if c.top is not None]
        return Generation(
            text=self.text,
            tokens=[c.token for c in self.choices],
            prompt_tokens=self.prompt,
            finish_reason=end.finish_reason,
            logprobs=logprobs or None,
            top_logprobs=tops or None,
            seed=end.seed,
            timing=end.timing,
        )


def _pieces(steps: Iterator[Step], answers: list[_Answer], has_text: bool) -> Iterator[Piece]:
    """Every token's step as a piece; where there is text, only those that have some, and the last."""
    for step in steps:
        answer = answers[step.index]
        answer.take(step)
        if step.text or step.end is not None or not has_text:
            yield answer.piece(step)
