"""Tiny random models of transformers, what they save, and ours filled from that. Every family and each of its variants
is a case: a family is tested by existing."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from qkv.families.family import Family, find, names
from qkv.load.weights import export, fill
from qkv.nn.stack import Transformer

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

LENGTHS = (1, 5, 19, 30, 41)  # below and above the tiny windows (6) and trained lengths (16, 24)
SEQUENCES = [[(7 * i * i + 3 * n + i) % 97 for i in range(n)] for n in LENGTHS]

CASES = [(name, variant) for name in names() for variant in ("tiny", *find(name).variants)]
each_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}: {v}" for n, v in CASES])
each_family = pytest.mark.parametrize("name", names())


@dataclass(frozen=True)
class Tensors:
    """A checkpoint in memory."""

    tensors: Mapping[str, Tensor]
    where: str = "memory"

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(x.shape) for name, x in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


@dataclass(frozen=True)
class Case:
    """A model of transformers (`theirs`), the config.json and tensors that it saves, and ours made of those."""

    family: Family
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    theirs: Any
    ours: Transformer
    notes: list[str]


def raw(name: str, variant: str) -> dict[str, Any]:
    """The config of a case as a person would write it."""
    family = find(name)
    return {**family.tiny, **family.variants.get(variant, {})}


@cache
def case(name: str, variant: str) -> Case:
    """One case, made once."""
    theirs = randomized(AutoConfig.for_model(name, **raw(name, variant)))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        tensors = load_file(Path(folder) / "model.safetensors")
    family = find(name)
    ours, notes = filled(family, config, tensors)
    return Case(family, config, tensors, theirs, ours, notes)


def randomized(config: Any) -> Any:
    """A model none of whose parts is trivial: no norm is one, no bias zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def filled(family: Family, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Transformer, list[str]]:
    """Our model of this config with these weights."""
    with torch.device("meta"):
        model = Transformer(family.spec(config))
    notes = fill(model, family.weights, Tensors(tensors), family)
    return model.eval(), notes


def reloaded(model: Transformer, family: Family) -> Any:
    """What transformers loads of what we write, with nothing missing and nothing over."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(export(model, family), Path(folder) / "model.safetensors", {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(family.config(model.spec)))
        theirs, info = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return theirs.eval()


def their_logits(model: Any, sequences: list[list[int]] = SEQUENCES) -> list[Tensor]:
    """[length, vocab] for each sequence, alone. Short ones first: dynamic scaling never shrinks back all the way."""
    assert sequences == sorted(sequences, key=len)
    with torch.no_grad():
        return [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in sequences]


def our_logits(model: Transformer, sequences: list[list[int]] = SEQUENCES) -> list[Tensor]:
    """[length, vocab] for each sequence, all in one batch."""
    with torch.no_grad():
        return model(sequences)


def close(a: list[Tensor], b: list[Tensor], within: float) -> None:
    for left, right in zip(a, b, strict=True):
        torch.testing.assert_close(left, right, atol=within, rtol=0)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a JSON tree with its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value
