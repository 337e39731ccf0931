"""Labels, or quantities, for a text or two (BERT, arXiv 1810.04805, §4.1)."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.train import recipe
from qkv.train.framed import column, feed_of, head_of, pieces_of, sample_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective

_LARGEST = float(np.finfo(np.float32).max)
_SCORE = "score"  # what a single quantity is called where the recipe gives it no name


@objective(recipe.ClassifyTexts)
class ClassifyTexts(Objective):
    """`label` is a name, a list of names ("multi"; a text alone is one name) or a number or several ("regression").

    Several labels' losses are averaged in each text, as in transformers: a text is one target, whatever the problem."""

    fields = ("text", "label")
    optional = ("second",)
    not_read = ("label",)

    def __init__(
        self, settings: recipe.ClassifyTexts, model: spec.Model, tokenizer: Tokenizer, length: int | None
    ) -> None:
        super().__init__(settings, model, tokenizer, length)
        head_of(model, spec.Classify, settings.kind)
        head = cast(spec.Classify, model.head)
        if head.problem != settings.problem:
            raise ConfigError(
                f"objective.problem is {settings.problem!r}, and the model's head is for {head.problem!r}"
            )
        if settings.smoothing and settings.problem != "single":
            raise ConfigError(f"objective.smoothing is for one right label, not for {settings.problem!r}")
        check_labels(head.labels, settings.labels)
        self.labels = head.labels
        self.lengths = Lengths(self, settings.on_long, most(model, length), stride=None)

    def encode(self, record: Record) -> list[Sample]:
        """InputError: no text, a label that the head hasn't, a text that is too long."""
        label = self.target(record.get("label"))
        texts = texts_of(record)
        pieces = pieces_of(self.tokenizer, texts)
        longer = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        windows = self.lengths.framed(self.tokenizer.frame(len(texts)), pieces, longer)
        return [{**sample_of(window.encoded, self.spec), "label": label} for window in windows]

    def target(self, label: Any) -> NDArray[np.int32]:
        """A record's label as a column: the number of the right one; 0 or 1 for each; or the bits of float32 numbers.
        InputError: it is none of those."""
        if self.settings.problem == "regression":
            values = np.asarray(numbers(label), np.float32)
            if len(values) != len(self.labels):
                raise InputError(f"label has {len(values)} numbers, and the head {len(self.labels)}: {label!r:.60}")
            return values.view(np.int32)
        found = {self.number(name) for name in names(label, self.settings.problem)}
        if self.settings.problem == "single":
            return np.asarray([*found], np.int32)
        return np.asarray([i in found for i in range(len(self.labels))], np.int32)

    def number(self, name: str) -> int:
        """A label's place in the head. InputError: it has none."""
        if name not in self.labels:
            raise InputError(f"label {name!r:.60} is none of the head's: {', '.join(self.labels[:20])}")
        return self.labels.index(name)

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        if self.settings.problem == "regression":
            bits = np.stack([np.asarray(sample["label"], np.int32) for sample in samples])
            return feed_of(samples, torch.from_numpy(bits.view(np.float32).copy()), len(samples))
        labels = torch.stack(column(samples, "label"))
        return feed_of(samples, labels[:, 0] if self.settings.problem == "single" else labels.float(), len(samples))

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        """Cross-entropy, binary cross-entropy or squared error, summed over texts."""
        out = torch.stack(model(feed.ids, segments=feed.segments)).float()
        labels = feed.labels.to(out.device)
        if self.settings.problem == "single":
            return F.cross_entropy(out, labels, reduction="sum", label_smoothing=self.settings.smoothing)
        if self.settings.problem == "multi":
            return F.binary_cross_entropy_with_logits(out, labels, reduction="sum") / len(self.labels)
        return F.mse_loss(out, labels, reduction="sum") / len(self.labels)


def labels_of(records: Iterable[Record], settings: recipe.ClassifyTexts) -> tuple[str, ...]:
    """The labels of a new head: those that the recipe names, or those of the records, sorted (by value where all are
    whole numbers). Records whose label is no label are left for `encode` to refuse. InputError: no label at all."""
    if settings.labels is not None:
        return settings.labels
    found: set[str] = set()
    widest = 0
    for record in records:
        try:
            if settings.problem == "regression":
                widest = max(widest, len(numbers(record.get("label"))))
            else:
                found.update(names(record.get("label"), settings.problem))
        except InputError:
            continue
    if widest:
        return (_SCORE,) if widest == 1 else tuple(f"{_SCORE}_{i + 1}" for i in range(widest))
    return in_order(found)


def in_order(labels: set[str]) -> tuple[str, ...]:
    """Labels sorted. InputError: there are none."""
    if not labels:
        raise InputError("no record has a label; data.fields says which of a file's fields that is")
    whole = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if whole else None))


def check_labels(head: Sequence[str], said: Sequence[str] | None) -> None:
    """ConfigError: the recipe names other labels than the model's head has, or in another order."""
    if said is not None and tuple(said) != tuple(head):
        raise ConfigError(
            f"objective.labels are {', '.join(said[:8])}, and the model's head has {', '.join(head[:8])} in this order"
        )


def texts_of(record: Record) -> list[str]:
    """One text or two. InputError: a field isn't one."""
    second = [] if record.get("second") is None else [text_of(record, "second")]
    return [text_of(record, "text"), *second]


def names(label: Any, problem: spec.Problem) -> list[str]:
    """A record's label or labels by name: whole numbers and true or false are names too. InputError: something else."""
    each = label if problem == "multi" and isinstance(label, Sequence) and not isinstance(label, str) else [label]
    for one in each:
        if not isinstance(one, str | int) or one == "":
            raise InputError(f"label must be a name{' or a list of them' * (problem == 'multi')}, got {label!r:.60}")
    return [str(one) for one in each]


def numbers(label: Any) -> list[float]:
    """A record's number or numbers (a text that says one is good too). InputError: something else, or not finite."""
    each = label if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    try:
        found = [float(one) for one in each if not isinstance(one, bool)]
    except (TypeError, ValueError):
        found = []
    if len(found) != len(each) or not found or not all(abs(one) <= _LARGEST for one in found):
        raise InputError(f"label must be a finite number or a list of them, got {label!r:.60}")
    return found
