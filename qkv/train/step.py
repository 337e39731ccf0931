"""One step: gradients of a batch, and the optimizers' move. It depends on weights, batch, seed and number alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qkv.errors import InputError
from qkv.train import optim, parallel
from qkv.train.ema import Ema
from qkv.train.faults import NotFinite
from qkv.train.heap import keep_freed
from qkv.train.learner import Learner
from qkv.train.objective import Feed
from qkv.train.recipe import Train

_SKIPPED_IN_A_ROW = 50  # float16 steps without a finite gradient, after which no scale will help


@dataclass(frozen=True)
class Gradients:
    """What a batch gave: the mean loss of a target, the gradients' norm before clipping, tokens read, targets."""

    loss: float
    norm: float
    tokens: int
    targets: int
    stop: bool


class Stepper:
    """Gradients of micro-batches, averaged over all their targets, whichever process and whichever of them they are
    in; and the optimizers' step.

    Random numbers (dropout) start anew at each step, from the seed, the step's number and the process: so a run that
    goes on from a checkpoint draws what it would have drawn."""

    def __init__(
        self,
        learner: Learner,
        module: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        train: Train,
        seed: int,
        world: parallel.World,
        ema: Ema | None = None,
    ) -> None:
        """`module`: the learner as `parallel.wrap` has it."""
        self.learner, self.module, self.optimizers, self.train = learner, module, optimizers, train
        self.seed, self.world, self.ema = seed, world, ema
        self.scaler = torch.amp.GradScaler(learner.model.device.type, enabled=train.dtype == "float16")
        if learner.model.device.type == "cpu":
            keep_freed()
        self.skipped = 0  # steps not taken, because a float16 gradient was too large
        self._in_a_row = 0

    def gradients(self, feeds: Sequence[Feed], step: int, stop: bool = False) -> Gradients:
        """The gradients of a whole batch. `stop`: this process has been asked to end; so is every one, then.

        NotFinite: the loss is not. The parameters are as they were."""
        torch.manual_seed(fold(self.seed, step, self.world.rank))
        counted = torch.tensor([sum(f.targets for f in feeds), sum(f.tokens for f in feeds), stop], dtype=torch.float64)
        targets, tokens, stopping = (int(x) for x in parallel.sum_over(self.world, counted))
        if stopping:
            return Gradients(0.0, 0.0, 0, 0, stop=True)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64)
        share = 1 / max(targets, 1)  # wrappers sum over processes
        for i, feed in enumerate(feeds):
            with parallel.accumulating(self.module, last=i == len(feeds) - 1):
                loss: Tensor = self.module(feed)
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().cpu()
        mean = parallel.sum_over(self.world, total).item() / max(targets, 1)
        if not np.isfinite(mean):
            raise NotFinite(f"the loss is {mean}")
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = parallel.clip_norm(self.learner.parameters(), self.train.clip, self.world).item()
        if not np.isfinite(norm) and not self.scaler.is_enabled():
            raise NotFinite(f"the loss is {mean:.4g}, and the norm of its gradient is {norm}")
        return Gradients(mean, norm, tokens, targets, stop=False)

    def move(self, factor: float) -> None:
        """The optimizers' step, with `factor` times their learning rates. To be called where nothing interrupts.

        InputError: float16 gradients overflow at every scale."""
        optim.set_factor(self.optimizers, factor)
        before = self.scaler.get_scale()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < before:
            self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
            if self._in_a_row >= _SKIPPED_IN_A_ROW:
                raise InputError(f"float16 gradients overflowed in {self._in_a_row} steps in a row; take bfloat16")
            return
        self._in_a_row = 0
        if self.ema is not None:
            self.ema.update()


def fold(*numbers: int) -> int:
    """One seed of several numbers, far from that of any other such numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
