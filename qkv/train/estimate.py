"""What a run will cost, before it begins: tokens, steps, arithmetic, memory and time. `guesses` says what isn't known.

    read = survey(draw(records), objective.encode, objective.size)  # counts all, encodes some hundreds
    estimate(recipe, model, read, peak=gemm_peak("bfloat16")).seconds

Arithmetic is `qkv.count`'s of one token forward, attention and head included, three times: the backward pass computes
each product's two gradients (6 · N · D where attention is small; arXiv 2001.08361, §2.1). What is frozen needs only the
gradient that goes on through it.
"""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qkv import count, spec
from qkv.errors import ConfigError
from qkv.train.recipe import Masked, ModelFrom, Recipe
from qkv.train.schedule import check
from qkv.train.survey import Survey

EFFICIENCY: Mapping[str, float] = {"float32": 0.5, "bfloat16": 0.4, "float16": 0.4}  # of the measured peak
FILLED = 0.9  # of a token budget, where texts of like lengths share a batch
_LOGITS = 2**22  # that the loss has in memory at a time


@dataclass(frozen=True)
class Estimate:
    """`tokens_per_step` is over all processes; `steps`, `tokens`, `flops` and `seconds` are the run's (None: the recipe
    says minutes, or epochs of data that weren't looked at); `memory` is bytes of one process by what for."""

    parameters: int
    trained: int
    tokens_per_step: int
    steps: int | None
    flops_per_token: float
    memory: Mapping[str, int]
    peak_flops: float
    efficiency: float
    guesses: tuple[str, ...]

    @property
    def frozen(self) -> int:
        return self.parameters - self.trained

    @property
    def tokens(self) -> int | None:
        return None if self.steps is None else self.steps * self.tokens_per_step

    @property
    def flops(self) -> float | None:
        return None if self.tokens is None else self.tokens * self.flops_per_token

    @property
    def tokens_per_second(self) -> float:
        return self.peak_flops * self.efficiency / self.flops_per_token

    @property
    def seconds(self) -> float | None:
        return None if self.tokens is None else self.tokens / self.tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        """All of it, as plain data."""
        names = ("frozen", "tokens", "flops", "tokens_per_second", "seconds")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def estimate(recipe: Recipe, model: spec.Model, read: Survey | None, *, peak: float, world: int = 1) -> Estimate:
    """`read`: None: the data aren't looked at, and each text is taken to have as many tokens as it may. `peak`: FLOP/s
    that the device reaches in the recipe's dtype. `world`: processes that share the work, each with such a device."""
    guesses: list[str] = []
    length = _length(recipe, model, read, guesses)
    batch = _batch_tokens(recipe, length, guesses)
    parameters, trained = count.parameters(model), trained_parameters(recipe.model, model)
    forward = forward_flops(recipe, model, length)
    passes = 2 + trained / parameters + recipe.train.checkpoint_activations
    each = round(batch * recipe.batch.accumulate * world)
    efficiency = EFFICIENCY[recipe.train.dtype]
    guesses.append(f"time: {efficiency:.0%} of the peak, without evaluations and checkpoints; small models reach less")
    guesses.append("memory: activations are counted from the spec, and what the libraries take besides is left out")
    rate = peak * world * efficiency
    return Estimate(
        parameters=parameters,
        trained=trained,
        tokens_per_step=each,
        steps=_steps(recipe, read, each, rate / (forward * passes), world, guesses),
        flops_per_token=forward * passes,
        memory=_memory(recipe, model, parameters, trained, batch, length),
        peak_flops=peak * world,
        efficiency=efficiency,
        guesses=tuple(guesses),
    )


def trained_parameters(said: ModelFrom, model: spec.Model) -> int:
    """How many numbers are trained: all but those that `freeze` names."""
    if not said.freeze:
        return count.parameters(model)
    import torch

    from qkv.nn.stack import Transformer

    with torch.device("meta"):
        named = dict(Transformer(model).named_parameters())
    return sum(p.numel() for name, p in named.items() if not any(fnmatch.fnmatch(name, one) for one in said.freeze))


def _length(recipe: Recipe, model: spec.Model, read: Survey | None, guesses: list[str]) -> float:
    """Tokens of a text, source and target together."""
    most = recipe.batch.length or model.context
    if read is None:
        guesses.append(f"tokens: each text is taken to have {most or 512}, the data weren't looked at")
        return float(most or 512)
    guesses.append(f"tokens: {read.tokens:,.0f} a text, the mean of {read.encoded:,} of {read.records:,} records")
    if not read.whole:
        guesses.append(f"data: reading stopped at {read.records:,} records, so an epoch is longer than said here")
    if read.bad:
        guesses.append(f"data: {read.bad:,} of {read.encoded:,} records are not what they should be: {read.why}")
    if recipe.batch.packing == "blocks":
        assert recipe.batch.length is not None
        return float(recipe.batch.length)
    return read.tokens


def _batch_tokens(recipe: Recipe, length: float, guesses: list[str]) -> float:
    """Tokens of one batch of one process."""
    batch = recipe.batch
    if batch.tokens is not None and batch.packing == "none":
        guesses.append(f"batches: {FILLED:.0%} of batch.tokens are filled")
        return max(batch.tokens * FILLED, 1.0)
    if batch.tokens is not None:
        return float(batch.tokens)
    assert batch.sequences is not None
    return max(batch.sequences * (float(batch.length or length) if batch.packing != "none" else length), 1.0)


def _steps(
    recipe: Recipe, read: Survey | None, each: int, tokens_per_second: float, world: int, guesses: list[str]
) -> int | None:
    train, batch = recipe.train, recipe.batch
    if train.steps is not None:
        return train.steps
    if train.minutes is not None:
        guesses.append(f"steps: as many as {train.minutes:g} minutes hold at the speed that is guessed here")
        return max(1, int(60 * train.minutes * tokens_per_second / each))
    if read is None or train.epochs is None:
        return None
    samples = read.records * read.samples
    by_count = batch.sequences is not None and batch.packing == "none"
    batches = samples / (batch.sequences or 1) if by_count else samples * read.tokens * batch.accumulate * world / each
    steps = max(1, math.ceil(train.epochs * math.ceil(batches / (batch.accumulate * world))))
    try:
        check(train, steps)
    except ConfigError as error:  # of a guess: the run counts its steps
        guesses.append(f"steps: if there are {steps:,}, the run will not begin: {error}")
    return steps


# --- arithmetic and memory ------------------------------------------------------------------------------------------


def forward_flops(recipe: Recipe, model: spec.Model, length: float) -> float:
    """FLOPs a token forward; of two stacks, of the mean token of both."""
    two = len(model.stacks) == 2
    seen = length / 2 if two or model.encoder is None else length  # causal: half of the text on average
    whole = count.flops_per_token(model, max(1, round(seen)))
    head = 2 * count.cost(model.head, model.vocab, model.dim, model.width).products
    if isinstance(recipe.objective, Masked):  # only the states of masked tokens go through the head
        whole -= round(head * (1 - recipe.objective.rate))
    return whole / 2 if two else float(whole)


def _memory(
    recipe: Recipe, model: spec.Model, parameters: int, trained: int, batch: float, length: float
) -> dict[str, int]:
    """Bytes at the end of a forward pass, when all that the backward pass needs is there."""
    train = recipe.train
    low = 4 if train.dtype == "float32" else 2
    by_part = count.parameters_by_part(model)
    matrices = (by_part["attention"] + by_part["mlp"]) * trained // parameters
    states = {"adamw": 2 * trained, "muon": 2 * trained - matrices, "adafactor": 0}[train.optimizer]
    copies = parameters * low if low < 4 else 0  # autocast's
    return {
        "weights": 4 * parameters * (2 if train.ema is not None else 1) + copies,
        "gradients": 4 * trained,
        "optimizer": 4 * states,
        "activations": round(batch * _kept(recipe, model, low, length)),
        "logits": round(min(_targets(recipe, model, batch) * model.vocab, _LOGITS)) * (8 + low),
    }


def _targets(recipe: Recipe, model: spec.Model, batch: float) -> float:
    """Tokens of a batch that the head finds a word for."""
    if isinstance(recipe.objective, Masked):
        return batch * recipe.objective.rate
    return batch / len(model.stacks) if isinstance(model.head, spec.LMHead) else 0.0


def _kept(recipe: Recipe, model: spec.Model, low: int, length: float) -> float:
    """Bytes a token that wait for the backward pass; of two stacks, of the mean token of both."""
    total, seen = 0.0, length / len(model.stacks)
    for stack in model.stacks:
        blocks = [_kept_in(stack.blocks[i % len(stack.blocks)], model.dim, low, seen) for i in range(stack.layers)]
        if recipe.train.checkpoint_activations:
            total += 4 * model.dim * stack.layers + max(blocks)
        else:
            total += sum(blocks)
    return total / len(model.stacks)


def _kept_in(block: spec.Block, dim: int, low: int, seen: float) -> float:
    """Of one block: what norms and sums keep in float32, what products read in the lower dtype, and what dropout took
    away. Dropout of attention's weights keeps the weights, a number for each pair of tokens."""
    mixers = [mixer for mixer in (block.mixer, block.cross) if mixer is not None]
    parts = len(mixers) + 1
    stream = parts * dim * ((4 + low) if low == 4 else (8 + low))
    width = block.mlp.width * (4 if isinstance(block.mlp, spec.Gated) else 2)
    dropped = 4 * parts * dim if block.dropout else 0
    return stream + sum(_attention(mixer, dim, low, seen) for mixer in mixers) + width * low + dropped


def _attention(mixer: spec.Mixer, dim: int, low: int, seen: float) -> float:
    """Bytes a token of queries, keys, values and what comes out; of a mixer of another kind as many as of the usual
    attention."""
    if not isinstance(mixer, spec.Attention):
        return 4 * dim * low
    weights = 12 * mixer.heads * seen if mixer.dropout else 0  # the weights, what is left of them, and the mask
    return (2 * mixer.heads + 2 * mixer.kv_heads) * mixer.head_width(dim) * low + weights
