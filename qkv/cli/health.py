"""A checkpoint's health, tensor by tensor: what `verify` prints. The loader refuses what doesn't fit; this looks at the
numbers too, which no file format checks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qkv.errors import QkvError
from qkv.load.checkpoint import open_checkpoint
from qkv.load.describe import Described, describe
from qkv.load.model import load_model
from qkv.nn.stack import Transformer

SHORT = 8  # tokens of the text that is tried


@dataclass
class Health:
    """What was found. `checks`: what was in order, `problems`: what makes answers wrong, `notes`: the rest."""

    described: Described
    stored: Counter[str] = field(default_factory=Counter)
    checks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        source = self.described.source
        about = {"model": source.ref, "origin": source.origin, "path": str(source.path)}
        found = {"checks": self.checks, "problems": self.problems, "notes": self.notes}
        return {**about, "healthy": not self.problems, "tensors": dict(self.stored), **found}


class Patient:
    """A model's stored tensors: `names`, the kind that each is stored as, and their values."""

    def __init__(self, described: Described) -> None:
        self.described = described
        self.checkpoint = open_checkpoint(described)
        self.kinds = self.checkpoint.kinds
        self.ties = {"output.weight": "token_embd.weight"} if described.gguf else described.family.copies
        self.names = list(self.checkpoint.shapes())


def admit(ref: str) -> Patient:
    """Resolve a reference and read its headers. Raises as `qkv.load.describe.describe` and the files' readers."""
    return Patient(describe(ref, config_only=False))


def examine(patient: Patient, names: Iterable[str]) -> Health:
    """Look at the tensors `names` (all, from an iterator that may show progress), then load the model and try it."""
    health = Health(patient.described, Counter(patient.kinds[name] for name in patient.names))
    health.notes += patient.described.notes
    for name in names:
        _look(name, patient.checkpoint.read(name), health)
    if not health.problems:
        kinds = ", ".join(f"{count} {kind}" for kind, count in health.stored.most_common())
        health.checks.append(f"{len(patient.names)} tensors ({kinds}), every number finite")
    _ties(patient, health)
    _try(patient, health)
    return health


def _look(name: str, tensor: Tensor, health: Health) -> None:
    if not tensor.is_floating_point() or not tensor.numel():
        return
    values = tensor.float() if tensor.itemsize == 1 else tensor
    if not bool(torch.isfinite(values).all()):
        nans, infinite = int(values.isnan().sum()), int(values.isinf().sum())
        health.problems.append(
            f"{name} holds {nans:,} NaN and {infinite:,} infinities among {values.numel():,} numbers"
        )
    elif not bool(values.any()):
        # Biases may well stay zero (BART's for the logits is [1, V]); a matrix of zeros is what a download leaves that
        # reserved its room and broke off.
        found = health.problems if values.squeeze().ndim > 1 else health.notes
        found.append(f"{name} is all zeros ({values.numel():,} numbers)")


def _ties(patient: Patient, health: Health) -> None:
    """An untied head with the embedding's own values: memory for nothing. (A tied one is compared by the loader.)"""
    if getattr(patient.described.spec.head, "tied", True):
        return
    for head, embedding in patient.ties.items():
        if head in patient.names and embedding in patient.names:
            one, other = (patient.checkpoint.read(name) for name in (embedding, head))
            if one.shape == other.shape and torch.equal(one, other):
                health.notes.append(f"{head} equals {embedding}; tied, the file would be smaller")


def _try(patient: Patient, health: Health) -> None:
    spec = patient.described.spec
    try:
        model, tokenizer, _, notes = load_model(patient.described.source.path, Transformer)
        health.checks.append("nothing missing, nothing left over, every shape fits")
        health.notes += [text for text in notes if text not in health.notes]
        if tokenizer is not None:
            health.checks.append(
                f"the tokenizer's {tokenizer.vocab_size:,} ids fit the embedding's {spec.vocab:,} rows"
            )
        with torch.no_grad():
            answer = model(torch.arange(min(SHORT, spec.vocab, spec.context or SHORT))[None])
            logits = torch.cat([x.flatten() for x in (answer if isinstance(answer, tuple) else (answer,))])
    except QkvError as error:
        health.problems.append(str(error))
        return
    wrong = int((~torch.isfinite(logits)).sum())
    if wrong:
        health.problems.append(f"{wrong:,} of {logits.numel():,} numbers for a short text are NaN or infinite")
    else:
        health.checks.append("a finite answer to a short text")
