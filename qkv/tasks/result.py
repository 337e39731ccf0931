"""What predictions are. `to_dict` gives what JSON takes; as text they read as a person would put it."""

from dataclasses import asdict, dataclass
from typing import Any

from qkv.spec import Problem


class _Result:
    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Classification(_Result):
    """A text's labels. scores: of all labels, best first: probabilities that sum to one ("single"), one for each label
    by itself ("multi"), or quantities ("regression"). label, score: the best of them. windows: how many the text was
    read in (scores are then of their mean logits); unread: tokens beyond the end that were left out on request."""

    label: str
    score: float
    scores: dict[str, float]
    problem: Problem = "single"
    windows: int = 1
    unread: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """What applies: the best label; of a "multi" head each one with a probability of at least one half."""
        if self.problem != "multi":
            return (self.label,)
        return tuple(label for label, score in self.scores.items() if score >= 0.5)

    def __str__(self) -> str:
        if self.problem == "multi" and not self.labels:
            return f"no label (the likeliest is {self.label}, {self.score:.3f})"
        return ", ".join(f"{label} ({self.scores[label]:.3f})" for label in self.labels)


@dataclass(frozen=True)
class Span(_Result):
    """A labelled stretch of a text: its characters start..end − 1, without spaces around, and the mean of its words'
    probabilities."""

    label: str
    start: int
    end: int
    text: str
    score: float

    def __str__(self) -> str:
        return f"{self.text} ({self.label}, {self.score:.3f})"


@dataclass(frozen=True)
class Tagged(_Result):
    """A text's spans, in its order. windows: how many it was read in."""

    text: str
    spans: tuple[Span, ...]
    windows: int = 1

    def __str__(self) -> str:
        pieces, at = [], 0
        for span in self.spans:
            pieces += [self.text[at : span.start], f"[{span.text}: {span.label}]"]
            at = span.end
        return "".join([*pieces, self.text[at:]])


@dataclass(frozen=True)
class Answer(_Result):
    """Characters start..end − 1 of a context, and the probability of just these tokens; "" stands for no answer."""

    text: str
    start: int
    end: int
    score: float

    def __str__(self) -> str:
        return f"{self.text or 'no answer'} ({self.score:.3f})"


@dataclass(frozen=True)
class Answered(_Result):
    """A question's answers, best first. windows: how many the context was read in."""

    question: str
    answers: tuple[Answer, ...]
    windows: int = 1

    @property
    def best(self) -> Answer:
        """The first of them."""
        return self.answers[0]

    def __str__(self) -> str:
        return str(self.best)


@dataclass(frozen=True)
class Filling(_Result):
    """A token for a mask: its text and id, its probability, and the whole text with it in this mask's place."""

    text: str
    id: int
    score: float
    filled: str

    def __str__(self) -> str:
        return self.filled


@dataclass(frozen=True)
class Filled(_Result):
    """A text's masks in order, and the likeliest tokens for each by itself, best first."""

    text: str
    masks: tuple[tuple[Filling, ...], ...]

    def __str__(self) -> str:
        if len(self.masks) == 1:
            return str(self.masks[0][0])
        return "; ".join(f"{i}: {fillings[0].text}" for i, fillings in enumerate(self.masks, 1))
