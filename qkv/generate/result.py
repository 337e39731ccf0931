"""What generating gives: a Generation a prompt, or Pieces of text on the way to it."""

from dataclasses import dataclass
from typing import Any, Literal

from qkv.generate.timing import Timing

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Beam:
    """One of the texts that a beam search found; as in a Generation.

    logprob: the log-probability that the search summed, after what its settings do to it (no_repeat_ngram, a forced
    token's 0, …), while `logprobs` are the model's own. score: logprob / len(tokens)^length_penalty."""

    text: str
    tokens: list[int]
    score: float
    logprob: float
    finish_reason: FinishReason
    logprobs: list[float] | None
    top_logprobs: list[dict[int, float]] | None


@dataclass(frozen=True)
class Generation:
    """One prompt's answer.

    text: without the prompt, special tokens and the stop text. tokens: every id that the model chose, the eos and those
    of a stop text included, so len(tokens) is what was computed. finish_reason: "stop" (an eos or a stop text) or
    "length" (max_tokens, max_length or the context; with forced_last also where that last token is an eos, which the
    model didn't choose). logprobs: one a token; top_logprobs: a {id: log-probability} a token, best first; None where
    not asked for. seed: the one that was used, None while greedy. beams: what a beam search found, n_best of them, best
    first, of which this is the first, with its score; None without one.

    Of an encoder–decoder: prompt_tokens are what the encoder read, and tokens come without the start token."""

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: FinishReason
    logprobs: list[float] | None
    top_logprobs: list[dict[int, float]] | None
    seed: int | None
    timing: Timing
    score: float | None = None
    beams: list[Beam] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        beams = None if self.beams is None else [vars(beam) for beam in self.beams]
        return {**vars(self), "timing": self.timing.to_dict(), "beams": beams}

    def __str__(self) -> str:
        return self.text


class Piece(str):
    """Some more text of one answer: a str, so that "".join(pieces) is the text.

    prompt_index: which prompt (`index` is str's own). tokens: the ids chosen since that prompt's piece before.
    generation: the whole answer, on its last piece (whose text may be empty), else None."""

    prompt_index: int
    tokens: list[int]
    generation: Generation | None

    def __new__(cls, text: str, prompt_index: int, tokens: list[int], generation: Generation | None = None) -> "Piece":
        piece = super().__new__(cls, text)
        piece.prompt_index, piece.tokens, piece.generation = prompt_index, tokens, generation
        return piece
