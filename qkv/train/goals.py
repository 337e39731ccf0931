"""What a recipe's `[objective]` may be: one class each, known by its `kind`. No torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Some = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
OnLong = Literal["error", "truncate", "drop", "window"]


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Objective(Section):
    """`smoothing`: label smoothing, y(1−ε) + ε/K (arXiv 1512.00567, §7). `on_long`: what becomes of a text beyond
    `batch.length`; what is cut or dropped is counted and reported."""

    smoothing: Below1 = 0.0
    on_long: OnLong = "error"


class Causal(Objective):
    """Each token from those before it. `text` alone, or an `answer` to it that alone is learned."""

    kind: Literal["causal"]


class Masked(Objective):
    """BERT's masked words (arXiv 1810.04805, §3.1): of `rate` of the tokens, 80 % become [MASK], 10 % any token and
    10 % stay. `dynamic`: drawn anew each time (RoBERTa, arXiv 1907.11692, §4.1), else once a text. `whole_words`: all
    tokens of a word together. `next_sentence`: also, does the second part follow the first?"""

    kind: Literal["masked"]
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask: Share = 0.8
    random: Share = 0.1
    dynamic: bool = True
    whole_words: bool = False
    next_sentence: bool = False

    @model_validator(mode="after")
    def _shares(self) -> "Masked":
        if self.mask + self.random > 1:
            raise ValueError("mask and random are shares of one whole: together at most 1")
        return self


class Spans(Objective):
    """T5's span corruption (arXiv 1910.10683, §3.1.4): spans of `mean` tokens, `rate` of all, become one sentinel
    each; the target says what they were."""

    kind: Literal["spans"]
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mean: Annotated[float, Field(ge=1)] = 3.0


class Prefix(Objective):
    """Prefix language model (arXiv 1910.10683, §3.2): a text cut at a random place; its end is the target."""

    kind: Literal["prefix"]


class Denoise(Objective):
    """BART's noise (arXiv 1910.13461, §2.2): `rate` of the tokens in spans of Poisson(`mean`) become one mask each
    (empty spans too), sentences are shuffled, tokens deleted, the text rotated; the target is the text."""

    kind: Literal["denoise"]
    rate: Share = 0.3
    mean: Annotated[float, Field(ge=0.5)] = 3.0
    shuffle: bool = True
    delete: Share = 0.0
    rotate: Share = 0.0


class Translate(Objective):
    """`source` to `target`, with teacher forcing (arXiv 1706.03762)."""

    kind: Literal["seq2seq"]
    prefix: str = ""  # before each source, as T5 has it


class ClassifyTexts(Objective):
    """`text` (and `second`) to a `label`; several (a list) or a number, as the problem is. `labels`: None: those of
    the data, sorted."""

    kind: Literal["classify"]
    labels: tuple[str, ...] | None = None
    problem: Literal["single", "multi", "regression"] = "single"


class TagWords(Objective):
    """`words` to `tags`, one a word; a word's first token has its label, its others none."""

    kind: Literal["tag"]
    labels: tuple[str, ...] | None = None


class AnswerSpan(Objective):
    """`question` and `context` to the span of an answer in the context (arXiv 1810.04805, §4.2 and 4.3); `answers` is
    a list of {text, start}. Long contexts are read in windows that overlap by `stride`."""

    kind: Literal["span"]
    stride: Count = 128


class Contrast(Objective):
    """`first` and `second` that belong together, against all other seconds of the batch (arXiv 1705.00652, §4.4;
    Sentence-BERT's MultipleNegativesRanking), by cosine times `scale`; a `negative` is one more wrong one."""

    kind: Literal["contrast"]
    scale: Positive = 20.0


AnyObjective = Annotated[
    Causal | Masked | Spans | Prefix | Denoise | Translate | ClassifyTexts | TagWords | AnswerSpan | Contrast,
    Field(discriminator="kind"),
]
