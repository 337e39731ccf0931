"""The model that a run begins with: weights that exist, or fresh ones of a config or spec."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError
from qkv.families.family import find
from qkv.inputs.text import Tokenizer
from qkv.load.head import HEADS
from qkv.model import Model, load
from qkv.specfile import from_dict
from qkv.train.recipe import ModelFrom

_ROLES = ("bos", "eos", "pad")


def begin(
    said: ModelFrom,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
    problem: spec.Problem | None = None,
) -> Model:
    """A model in float32 with its tokenizer. `labels`: of a new head that chooses from some; `problem`: what a new
    classifier is for (None: what the number of labels says).

    ConfigError, InputError: what `said` asks for can't be."""
    if said.origin is not None:
        named = labels if said.new_head in ("classify", "tag") else None
        model = load(said.origin, torch.float32, new_head=said.new_head, labels=named)
        model.tokenizer = tokenizer or model.tokenizer
        if (wanted := changed(model.spec, said, problem)) != model.spec:
            model = with_weights(model, wanted, model.state_dict())
    else:
        model = Model(shape(said, tokenizer, labels, problem))
        model.tokenizer = tokenizer
        start = {} if model.spec.start is None else {"decoder_start_token_id": model.spec.start}
        model.generation = {**_token_ids(tokenizer), **start}
    if tokenizer is not None:
        tokenizer.check_rows(model.spec.vocab)
    _freeze(model, said.freeze)
    return model


def shape(
    said: ModelFrom,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
    problem: spec.Problem | None = None,
) -> spec.Model:
    """The spec of fresh weights; arguments as `begin`'s. ConfigError: a config that its family doesn't
    understand, no vocabulary."""
    vocab = {} if tokenizer is None else {"vocab_size": tokenizer.vocab_size, **_token_ids(tokenizer)}
    if said.spec is not None:
        own = {"vocab": vocab["vocab_size"], **said.spec} if vocab else said.spec
        made = from_dict({"kind": "Model", **own})
        if not isinstance(made, spec.Model):
            raise ConfigError(f"model.spec is a {type(made).__name__}, not a Model")
        if said.new_head is not None:
            raise ConfigError(
                "model.new_head is for weights that exist or a family's config; a spec names its own head"
            )
        return changed(made, said, problem)
    config = {**vocab, **(said.config or {})}
    family = find(config.get("model_type"))
    if said.new_head is not None:
        if said.new_head not in HEADS:
            raise ConfigError(f"model.new_head is {said.new_head!r}, none of {', '.join(HEADS)}")
        named = labels if said.new_head in ("classify", "tag") else None
        config = dict(family.with_head(config, HEADS[said.new_head], named))
    return changed(family.spec(config), said, problem)


def changed(model: spec.Model, said: ModelFrom, problem: spec.Problem | None) -> spec.Model:
    """The spec with what `said` has other than the model: dropout, and what a new classifier is for."""
    if problem is not None and said.new_head is not None and isinstance(model.head, spec.Classify):
        model = dataclasses.replace(model, head=dataclasses.replace(model.head, problem=problem))
    return model if said.dropout is None else _with_dropout(model, said.dropout)


def _with_dropout(model: spec.Model, rate: float) -> spec.Model:
    """The spec with this rate wherever its family's config has one (all have some), so that the trained model can be
    saved; without a family, in each part."""
    wanted: spec.Model = with_dropout(model, rate)
    if not model.family:
        return wanted
    said: spec.Model = find(model.family).nearest(wanted)
    return said if with_dropout(said, rate) == wanted else wanted  # else it couldn't be saved before


def with_dropout(value: Any, rate: float) -> Any:
    """A spec with this rate of dropout in each of its parts that has one."""
    if isinstance(value, tuple):
        return tuple(with_dropout(one, rate) for one in value)
    if not isinstance(value, spec.Part):
        return value
    changes = {f.name: with_dropout(getattr(value, f.name), rate) for f in dataclasses.fields(value)}
    if "dropout" in changes:
        changes["dropout"] = rate
    return dataclasses.replace(value, **changes)


def with_weights(model: Model, shape: spec.Model, weights: Mapping[str, Tensor]) -> Model:
    """A model of this spec with these weights, the same tensors, and all else of `model`."""
    with torch.device("meta"):
        new = Model(shape)
    new.load_state_dict(weights, assign=True)
    for name in ("tokenizer", "generation", "generation_from", "sentence", "tasks", "source", "notes"):
        setattr(new, name, getattr(model, name))
    return new


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Where texts begin and end, by a config's names for it."""
    if tokenizer is None:
        return {}
    ids = {"bos": tokenizer.bos, "eos": tokenizer.eos[0] if tokenizer.eos else None, "pad": tokenizer.pad}
    return {f"{role}_token_id": ids[role] for role in _ROLES if ids[role] is not None}


def _freeze(model: Model, patterns: Sequence[str]) -> None:
    """Parameters that stay as they are. ConfigError: a pattern that names none, or nothing is left to train."""
    names = dict(model.named_parameters())
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ConfigError(f"model.freeze: {pattern!r} names no parameter; they are called like {next(iter(names))}")
        for name in found:
            names[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in names.values()):
        raise ConfigError("model.freeze leaves nothing to train")
