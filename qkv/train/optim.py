"""Optimizers by a recipe, and their state as named tensors.

    optimizers = make(model, recipe.train)
    live, said = tensors(optimizers, names(model))      # nothing is copied; `said` is JSON
    restore(optimizers, names(model), saved, said)      # in place; whatever doesn't fit is named

A tensor is called "PARAMETER/NAME": "decoder.norm.weight/exp_avg". Parameters that had no gradient yet have no state,
and that is part of what is saved. Values that are no tensors (rates, decay) are the recipe's and not in here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, AdamW, Muon, Optimizer

from qkv.errors import ConfigError, CorruptFile
from qkv.nn.block import PreNorm
from qkv.nn.position import Relative
from qkv.train.recipe import Train

Names = Mapping[Tensor, str]  # a parameter's name
_INITIAL = "initial_lr"  # torch.optim.lr_scheduler's name for it too


def make(model: nn.Module, train: Train) -> list[Optimizer]:
    """The recipe's optimizers over the parameters that require a gradient, tied ones once.

    Weight decay is for everything with two axes or more: matrices, and tables too (tokens, positions, segments,
    relative biases), as transformers' Trainer and nanoGPT have it; a tied table is the head's matrix. Biases and norms
    have none. Muon (Jordan 2024, kellerjordan.github.io/posts/muon) is for the matrices inside blocks, with `muon_lr`;
    tables, heads, biases and norms beside it are AdamW's, with `lr`. Adafactor (arXiv 1804.04235) is torch's: its steps
    are `lr` (at most 1/√step) times the weights' RMS, without momentum.

    Of sharded parameters (FSDP2) it must be made after the sharding. ConfigError: nothing to train, a setting that the
    optimizer doesn't have, Adafactor of sharded parameters."""
    trained = [parameter for parameter in names(model) if parameter.requires_grad]
    if not trained:
        raise ConfigError("no parameter requires a gradient: there is nothing to train")
    _check(train)
    if train.optimizer == "adafactor":
        _check_whole(trained)
        made: list[Optimizer] = [Adafactor(_groups(trained, train), lr=train.lr)]
    elif train.optimizer == "muon":
        inside = _in_blocks(model)
        by_muon = [p for p in trained if p in inside and p.dim() == 2]
        rest = [p for p in trained if not (p in inside and p.dim() == 2)]
        made = [Muon(by_muon, lr=train.muon_lr, weight_decay=train.weight_decay)] if by_muon else []
        made += [_adamw(rest, train)] if rest else []
    else:
        made = [_adamw(trained, train)]
    for group in _all_groups(made):
        group[_INITIAL] = group["lr"]
    return made


def set_factor(optimizers: Sequence[Optimizer], factor: float) -> None:
    """Each group's learning rate: this factor times what it was made with."""
    for group in _all_groups(optimizers):
        group["lr"] = group[_INITIAL] * factor


def names(model: nn.Module) -> dict[Tensor, str]:
    """Each parameter's name; of a tied one the first. Wrappers' prefixes are in them: give the model itself."""
    return {parameter: name for name, parameter in model.named_parameters()}


def tensors(optimizers: Sequence[Optimizer], names: Names) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All state tensors by name, the optimizers' own (no copies; DTensors as they are), and what `restore` must know
    beside them, as JSON: which optimizer has which parameters, and which of them have a state."""
    live = {
        f"{names[p]}/{key}": value
        for optimizer in optimizers
        for p in _parameters(optimizer)
        for key, value in optimizer.state.get(p, {}).items()
    }
    return live, {"optimizers": [_said(optimizer, names) for optimizer in optimizers]}


def room(optimizers: Sequence[Optimizer], names: Names, said: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state tensors that a checkpoint's JSON names, to be filled in place: the optimizers' own where there are
    some, new ones (not zeroed) elsewhere. ConfigError: the JSON is of other optimizers or parameters."""
    _check_said(optimizers, names, said)
    for optimizer, of in zip(optimizers, said["optimizers"], strict=True):
        stateful = set(of["with_state"])
        for p in _parameters(optimizer):
            if names[p] not in stateful:
                optimizer.state.pop(p, None)
            elif not optimizer.state.get(p):
                optimizer.state[p] = _FRESH[type(optimizer)](p)
    return tensors(optimizers, names)[0]


@torch.no_grad()
def restore(
    optimizers: Sequence[Optimizer], names: Names, saved: Mapping[str, Tensor], said: Mapping[str, Any]
) -> None:
    """Put saved state back, in place and with its dtypes; beyond the state itself no more memory is needed than
    `saved` gives at a time (it may read each tensor when asked for it).

    ConfigError: of other optimizers, parameters, shapes or dtypes. CorruptFile: tensors missing or left over."""
    into = room(optimizers, names, said)
    if missing := sorted(into.keys() - saved.keys()):
        raise CorruptFile(f"the optimizer's state lacks {_some(missing)}: the checkpoint is not whole")
    if unexpected := sorted(saved.keys() - into.keys()):
        raise CorruptFile(f"the optimizer's state has {_some(unexpected)}, which its own list doesn't")
    for name, target in into.items():
        value = saved[name]
        if value.shape != target.shape or value.dtype != target.dtype:
            raise ConfigError(f"optimizer state {name} is {_like(value)} in the checkpoint, {_like(target)} here")
        target.copy_(value)


# --- groups ---------------------------------------------------------------------------------------------------------


def _adamw(parameters: Sequence[Tensor], train: Train) -> AdamW:
    return AdamW(_groups(parameters, train), lr=train.lr, betas=train.betas, eps=train.eps, fused=True)


def _groups(parameters: Sequence[Tensor], train: Train) -> list[dict[str, Any]]:
    """With weight decay, and without."""
    groups = (
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def _in_blocks(model: nn.Module) -> set[Tensor]:
    """Parameters of blocks, without the tables of positions: those are looked up, not multiplied by."""
    modules = [inner for outer in model.modules() if isinstance(outer, PreNorm) for inner in outer.modules()]
    looked_up: set[Tensor] = {p for one in modules if isinstance(one, Relative) for p in one.parameters()}
    found: set[Tensor] = {p for one in modules for p in one.parameters(recurse=False)}
    return found - looked_up


def _check(train: Train) -> None:
    """Nothing that was set may be without effect."""
    without = {"adamw": ("muon_lr",), "muon": (), "adafactor": ("betas", "eps", "muon_lr")}[train.optimizer]
    for key in without:
        if getattr(train, key) != Train.model_fields[key].default:
            raise ConfigError(f"train.{key} does nothing with optimizer {train.optimizer!r}: leave it out")


def _check_whole(parameters: Sequence[Tensor]) -> None:
    """torch 2.13's Adafactor squares norms in place, which a sharded tensor can't."""
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for p in parameters):
        raise ConfigError('adafactor doesn\'t work on sharded parameters: say train.parallel = "ddp", or adamw')


def _all_groups(optimizers: Sequence[Optimizer]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers:
        yield from optimizer.param_groups


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


# --- state ----------------------------------------------------------------------------------------------------------
# What each optimizer makes of a parameter at its first step. The tests hold it to torch's.


def _of_adamw(p: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), dtype=torch.float32, device=p.device)  # fused: beside its parameter
    return {"step": step, "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}


def _of_muon(p: Tensor) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.empty_like(p)}


def _of_adafactor(p: Tensor) -> dict[str, Tensor]:
    step = torch.zeros(())
    if p.dim() < 2:
        return {"step": step, "variance": torch.empty_like(p)}
    rows, columns = [*p.shape[:-1], 1], [*p.shape[:-2], 1, p.shape[-1]]
    return {"step": step, "row_var": p.new_zeros(rows), "col_var": p.new_zeros(columns)}


_FRESH: dict[type[Optimizer], Callable[[Tensor], dict[str, Tensor]]] = {
    AdamW: lambda p: _of_adamw(p.detach()),
    Muon: lambda p: _of_muon(p.detach()),
    Adafactor: lambda p: _of_adafactor(p.detach()),
}


def _said(optimizer: Optimizer, names: Names) -> dict[str, Any]:
    parameters = list(_parameters(optimizer))
    with_state = [names[p] for p in parameters if optimizer.state.get(p)]
    kind = type(optimizer).__name__
    return {"kind": kind, "parameters": [names[p] for p in parameters], "with_state": with_state}


def _check_said(optimizers: Sequence[Optimizer], names: Names, said: Mapping[str, Any]) -> None:
    """ConfigError: other optimizers, or over other parameters, in any order."""
    here = [_said(optimizer, names) for optimizer in optimizers]
    there = said["optimizers"]
    kinds = [" and ".join(of["kind"] for of in each) for each in (there, here)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"the checkpoint's optimizer is {kinds[0]}, the recipe's {kinds[1]}: train.optimizer changed")
    for a, b in zip(there, here, strict=True):
        before, now = set(a["parameters"]), set(b["parameters"])
        if gone := sorted(before - now):
            raise ConfigError(f"the checkpoint's {a['kind']} trained {_some(gone)}, which this one doesn't")
        if new := sorted(now - before):
            raise ConfigError(f"the checkpoint's {a['kind']} didn't train {_some(new)}, which this one does")
        if strange := sorted(set(a["with_state"]) - before):
            raise CorruptFile(f"the optimizer's list has a state for {_some(strange)}, which it doesn't train")


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _like(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
