"""Tiny random models of transformers, what they save, and ours filled from that. Every family and each of its variants
is a case: a family is tested by existing."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from qkv import spec
from qkv.families.family import Architecture, Family, find, names
from qkv.load.weights import export, fill
from qkv.nn.stack import Transformer

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def generates(model: spec.Model) -> bool:
    """Does it continue a text?"""
    return model.decoder is not None and isinstance(model.head, spec.LMHead)


LENGTHS = (1, 5, 19, 30, 41)  # below and above the tiny windows (6) and trained lengths (16, 24)
FIRST = 3  # below are the special tokens: transformers takes some ids for padding
SEQUENCES = [[FIRST + (7 * i * i + 3 * n + i) % (97 - FIRST) for i in range(n)] for n in LENGTHS]
TARGETS = [[FIRST + (5 * i * i + n + i) % (97 - FIRST) for i in range(n)] for n in (3, 1, 17, 8, 30)]

CASES = [
    (name, variant)
    for name in names()
    for variant in ("tiny", *find(name).variants, *(a.name for a in find(name).architectures[1:]))
]
each_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}: {v}" for n, v in CASES])
each_family = pytest.mark.parametrize("name", names())
GENERATING = [name for name in names() if generates(find(name).spec(find(name).tiny))]


@dataclass(frozen=True)
class Tensors:
    """A checkpoint in memory."""

    tensors: Mapping[str, Tensor]
    where: str = "memory"

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(x.shape) for name, x in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def packed(self, name: str) -> None:
        return None

    def by_output(self, name: str) -> bool:
        return False


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
    if variant in {a.name for a in family.architectures}:
        return {**family.tiny, "architectures": [variant]}
    return {**family.tiny, **family.variants.get(variant, {})}


@cache
def case(name: str, variant: str) -> Case:
    """One case, made once."""
    family, config = find(name), raw(name, variant)
    config.pop("architectures", None)
    theirs = randomized(AutoConfig.for_model(name, **config), family.architecture(raw(name, variant)))
    said = {} if config.get("tie_word_embeddings", True) else untied(theirs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        config = {**json.loads((Path(folder) / "config.json").read_text()), **said}
        stored = load_file(Path(folder) / "model.safetensors")
    tensors = {name: x for name, x in stored.items() if name not in family.ignored}
    ours, notes = filled(family, config, tensors)
    return Case(family, config, tensors, theirs, ours, notes)


def randomized(config: Any, architecture: Architecture | None = None) -> Any:
    """A model (None: a causal language model) none of whose parts is trivial: no norm is one, no bias zero."""
    torch.manual_seed(0)
    make = getattr(transformers, architecture.name)._from_config if architecture else AutoModelForCausalLM.from_config
    model = make(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):  # not a table of sines
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))
    return model


def untied(model: Any) -> dict[str, Any]:
    """The head gets values of its own, which a published T5 v1.1 has, though transformers 5 always begins by tying it
    and writes that into the config. What the config says where it is published."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(torch.randn_like(embedding.weight) * 0.2)
    return {"tie_word_embeddings": False}


def filled(family: Family, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Transformer, list[str]]:
    """Our model of this config with these weights."""
    with torch.device("meta"):
        model = Transformer(family.spec(config))
    architecture = family.architecture(config)
    notes = fill(model, family.table(architecture), Tensors(tensors), family, architecture=architecture)
    return model.eval(), notes


def reloaded(model: Transformer, family: Family) -> Any:
    """What transformers loads of what we write, with nothing missing and nothing over."""
    config = family.config(model.spec)
    with tempfile.TemporaryDirectory() as folder:
        save_file(export(model, family), Path(folder) / "model.safetensors", {"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        theirs, info = getattr(transformers, config["architectures"][0]).from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    assert not info["missing_keys"] - set(family.ignored), info  # it computes them, too
    assert not any(info[kind] for kind in ("unexpected_keys", "mismatched_keys")), info
    return theirs.eval()


def inputs(model: spec.Model, ids: list[int], target: list[int]) -> dict[str, list[int]]:
    """What transformers' model of this spec reads of a source and a target."""
    if model.encoder is None or model.decoder is None:
        return {"input_ids": ids}
    if isinstance(model.head, spec.Classify):
        return {"input_ids": [*ids, find(model.family).tiny["eos_token_id"]]}  # it classifies the state of the eos
    return {"input_ids": ids, "decoder_input_ids": target}


def their_outputs(theirs: Any, model: spec.Model, sequences: list[list[int]] = SEQUENCES) -> list[Tensor]:
    """What the head gives for each sequence, alone, short ones first (dynamic scaling never shrinks back)."""
    assert sequences == sorted(sequences, key=len)
    out = []
    for ids, target in zip(sequences, cycle(TARGETS)):
        given = {name: torch.tensor([row]) for name, row in inputs(model, ids, target).items()}
        with torch.no_grad():
            out.append(their_head(theirs(**given), model.head))
    return out


def their_head(out: Any, head: spec.Head) -> Tensor:
    """A head's numbers in transformers' output for one sequence; of several heads all in a row."""
    if isinstance(head, spec.Heads):
        sentence = out.seq_relationship_logits if "seq_relationship_logits" in out else out.sop_logits
        return torch.cat((out.prediction_logits.flatten(), sentence.flatten()))
    if isinstance(head, spec.Span):
        return torch.stack((out.start_logits[0], out.end_logits[0]), -1)
    return out.last_hidden_state[0] if isinstance(head, spec.States) else out.logits[0]


def our_outputs(model: Transformer, sequences: list[list[int]] = SEQUENCES) -> list[Tensor]:
    """The same, all in one batch."""
    given = [inputs(model.spec, ids, target) for ids, target in zip(sequences, cycle(TARGETS))]
    targets = [row["decoder_input_ids"] for row in given if "decoder_input_ids" in row] or None
    with torch.no_grad():
        out = model([row["input_ids"] for row in given], targets)
    if isinstance(out, tuple):
        return [torch.cat([part.flatten() for part in parts]) for parts in zip(*out, strict=True)]
    return out


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
