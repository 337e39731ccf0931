"""A recipe: everything that shapes a run, as data. No torch. `qkv.train.recipe_file` reads and writes it as TOML.

    [model]
    from = "minilm"
    [data]
    train = "train.jsonl"
    [objective]
    kind = "classify"
    [train]
    epochs = 3
    lr = 5e-5

A setting that is not here doesn't exist: unknown keys are errors, and so are values of the wrong kind.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qkv.train.goals import AnswerSpan as AnswerSpan
from qkv.train.goals import AnyObjective as AnyObjective
from qkv.train.goals import Below1, Count, Positive, Share, Some
from qkv.train.goals import Causal as Causal
from qkv.train.goals import ClassifyTexts as ClassifyTexts
from qkv.train.goals import Contrast as Contrast
from qkv.train.goals import Denoise as Denoise
from qkv.train.goals import Masked as Masked
from qkv.train.goals import Objective as Objective
from qkv.train.goals import OnLong as OnLong
from qkv.train.goals import Prefix as Prefix
from qkv.train.goals import Section as Section
from qkv.train.goals import Spans as Spans
from qkv.train.goals import TagWords as TagWords
from qkv.train.goals import Translate as Translate


def _without_effect(section: Section, names: tuple[str, ...], why: str) -> None:
    """ValueError: one of these is said. A run's own recipe spells out all defaults, so those are no mistake."""
    for name in names:
        default = type(section).model_fields[name].default
        if name in section.model_fields_set and getattr(section, name) != default:
            raise ValueError(f"{name} has no effect, as {why.format(f'leave {name} out')}")


class ModelFrom(Section):
    """What is trained: weights that exist (`from`), or fresh ones of a family's config.json (`config`) or of a spec
    (`spec`). `vocab` in these may be left out: the tokenizer's size is taken."""

    origin: str | None = Field(default=None, alias="from")
    config: dict[str, Any] | None = None
    spec: dict[str, Any] | None = None
    new_head: str | None = None
    dropout: Below1 | None = None  # in place of what the model says, wherever its config has one
    freeze: tuple[str, ...] = ()  # patterns (fnmatch) of parameters that stay as they are

    @model_validator(mode="after")
    def _one(self) -> "ModelFrom":
        if sum(x is not None for x in (self.origin, self.config, self.spec)) != 1:
            raise ValueError("say one of from (weights that exist), config (a family's) or spec (qkv's own)")
        return self


class TokenizerFrom(Section):
    """Whose tokenizer (`from`: a model or a folder), or one trained on the training texts. Neither: the model's."""

    origin: str | None = Field(default=None, alias="from")
    train: Literal["bpe", "wordpiece", "unigram", "char", "word"] | None = None
    vocab: Count | None = None
    lowercase: bool = False

    @model_validator(mode="after")
    def _one(self) -> "TokenizerFrom":
        if self.origin is not None and self.train is not None:
            raise ValueError("say from or train, not both")
        if self.train is None:
            _without_effect(self, ("vocab", "lowercase"), "only a tokenizer that is trained has it: {}, or say train")
        return self


class File(Section):
    """A file of records, or a pattern of several (`*`); `set` gives each of its records fields of the same value."""

    path: str
    set: dict[str, Any] = Field(default={})


Files = str | File | tuple[str | File, ...]


class HoldOut(Section):
    """Shares of the training records that are kept for validation and test, chosen by a hash: the same ones at each
    run. `by`: a field; records that agree in it stay together. Of several fields: records that agree in any of them, so
    that no value of a held-out record occurs in training (all files are read once more for that). None: no field, all
    that a record says."""

    valid: Below1 = 0.0
    test: Below1 = 0.0
    by: str | tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _some_left(self) -> "HoldOut":
        if self.by == ():
            raise ValueError("by names no field: name one or several, or leave it out")
        if self.valid + self.test >= 1:
            raise ValueError("valid and test together leave nothing to train on")
        return self


class Data(Section):
    """Where records come from. Names of files are relative to `root`, which is relative to the recipe's folder."""

    train: Files
    valid: Files = ()
    test: Files = ()
    root: str = "."
    format: Literal["auto", "text", "jsonl", "csv", "tsv", "parquet", "conll", "squad", "hub"] = "auto"
    document: Literal["line", "paragraph", "file"] = "line"  # what a record of a text file is
    fields: dict[str, str | int] = Field(default={})  # the objective's name → the file's, or a column's number
    header: bool = True  # of CSV and TSV: the first line names the columns
    hold_out: HoldOut | None = None
    limit: Count | None = None  # training records at most, drawn by a hash from all files alike
    skip_bad: Some = 0  # bad records that are skipped, named and counted; one more stops the run
    workers: Some = 0  # processes that make batches

    @model_validator(mode="after")
    def _of_the_format(self) -> "Data":
        if self.format not in ("auto", "text"):
            _without_effect(self, ("document",), f"only text files have it, and format is {self.format!r}: {{}}")
        if self.format not in ("auto", "csv", "tsv"):
            _without_effect(self, ("header",), f"only CSV and TSV have it, and format is {self.format!r}: {{}}")
        return self


# --- how ------------------------------------------------------------------------------------------------------------


class BatchOf(Section):
    """A step's batch: `sequences` of them or, of texts of like lengths, `tokens` at most (source and target together);
    `accumulate` such batches are one step. `length`: tokens of a text at most (None: what the model can read).
    `packing`: "blocks": all texts joined, cut every `length` tokens; "documents": the same, and no token sees another
    document's."""

    sequences: Count | None = None
    tokens: Count | None = None
    length: Count | None = None
    packing: Literal["none", "blocks", "documents"] = "none"
    accumulate: Count = 1

    @model_validator(mode="after")
    def _one(self) -> "BatchOf":
        if (self.sequences is None) == (self.tokens is None):
            raise ValueError("say one of sequences and tokens")
        if self.packing != "none" and self.length is None:
            raise ValueError("packing needs a length")
        return self


class Schedule(Section):
    """The learning rate over steps: `warmup` steps (or a share of all) up to `train.lr`, then as the kind says.
    "inverse_sqrt" is 2017's (arXiv 1706.03762, §5.3): lr · sqrt(warmup / step). "wsd" stays, and goes down in the last
    `decay` share. `floor` is what is left at the end, as a share of lr."""

    kind: Literal["constant", "linear", "cosine", "inverse_sqrt", "wsd"] = "linear"
    warmup: Annotated[float, Field(ge=0)] = 0.0  # below 1: a share of all steps
    decay: Share = 0.2
    floor: Share = 0.0

    @model_validator(mode="after")
    def _of_the_kind(self) -> "Schedule":
        if self.kind != "wsd":
            _without_effect(self, ("decay",), f'only kind "wsd" has it, and kind is "{self.kind}": {{}}')
        return self


class Train(Section):
    """How long, and by which optimizer. One of `steps`, `epochs`, `minutes` (of training; evaluation apart)."""

    steps: Count | None = None
    epochs: Positive | None = None
    minutes: Positive | None = None
    optimizer: Literal["adamw", "muon", "adafactor"] = "adamw"
    lr: Positive = 5e-5
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    muon_lr: Positive = 0.02  # of the matrices, where the optimizer is Muon; the rest has AdamW's lr
    clip: Positive | None = 1.0  # of the gradients' norm
    schedule: Schedule = Schedule()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the products (autocast); weights are float32
    checkpoint_activations: bool = False
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun

    @model_validator(mode="after")
    def _one(self) -> "Train":
        if sum(x is not None for x in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("say one of steps, epochs and minutes")
        return self


class Evaluate(Section):
    """`every` so many steps (None: at the end of the run), on the validation records or the first `limit` of them.
    `metrics`: None: what fits the objective. `best`: the one that decides which weights are kept; `patience`: that many
    evaluations without a better one end the run. `samples` predictions are shown each time."""

    every: Count | None = None
    limit: Count | None = None
    metrics: tuple[str, ...] | None = None
    best: str | None = None
    patience: Count | None = None
    samples: Some = 3

    @model_validator(mode="after")
    def _more_than_one(self) -> "Evaluate":
        if self.every is None:
            _without_effect(self, ("patience",), "without every there is one evaluation, at the end: {}, or say every")
        return self


class Save(Section):
    """A checkpoint `every` so many steps or minutes (None: at the end, and when the run is stopped); the last `keep`
    stay."""

    every: Count | None = None
    minutes: Positive | None = None
    keep: Count = 2


class Watch(Section):
    """`log_every` so many steps a line in log.jsonl; `tensorboard`: events for it too."""

    log_every: Count = 10
    tensorboard: bool = False


class Recipe(Section):
    """A run."""

    name: str
    seed: Some = 0
    model: ModelFrom
    tokenizer: TokenizerFrom = TokenizerFrom()
    data: Data
    objective: AnyObjective
    batch: BatchOf
    train: Train
    eval: Evaluate = Evaluate()
    save: Save = Save()
    watch: Watch = Watch()

    @model_validator(mode="after")
    def _nothing_is_too_long(self) -> "Recipe":
        if self.batch.packing != "none" and self.objective.on_long != "error":
            raise ValueError(
                f"objective.on_long is {self.objective.on_long!r}, and packing has no text that is too long: leave "
                'objective.on_long out, or say batch.packing = "none"'
            )
        return self
