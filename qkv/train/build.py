"""From what is prepared to what steps: model, optimizers, batches; and all of it to a checkpoint and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qkv.errors import CorruptFile, InputError, NotFound
from qkv.model import Model
from qkv.train import checkpoint, fingerprint, optim, parallel
from qkv.train.checkpoint import Checkpoint
from qkv.train.ema import Ema
from qkv.train.estimate import forward_flops
from qkv.train.learner import Learner, checkpoint_activations, compile_blocks
from qkv.train.loader import Loader
from qkv.train.loop import State
from qkv.train.order import Order
from qkv.train.prepare import Prepared
from qkv.train.recipe import Recipe
from qkv.train.schedule import check
from qkv.train.step import Stepper


@dataclass(frozen=True)
class Machinery:
    """`total`: steps in all (None: by time); `flops`: of a token in training; `world` and `prepared` as they came."""

    model: Model
    stepper: Stepper
    loader: Loader
    order: Order
    total: int | None
    flops: float
    world: parallel.World
    prepared: Prepared

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, tied ones once."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def save(self, folder: Path, state: State, keep: int, protect: list[int]) -> None:
        """A checkpoint of all that shapes the next step. Raises as `checkpoint.save`."""
        tensors, said = optim.tensors(self.stepper.optimizers, optim.names(self.model))
        held = {"weights": self.weights(), "optimizer": tensors}
        if self.stepper.ema is not None:
            held["average"] = self.stepper.ema.tensors()
        told = {
            "loop": state.to_json(),
            "optimizer": said,
            "scaler": self.stepper.scaler.state_dict(),
            "skipped": self.stepper.skipped,
            "data": self.prepared.print,
            "world": self.world.size,
        }
        checkpoint.save(folder, state.step, held, told, keep=keep, protect=protect, world=self.world)

    def take(self, found: Checkpoint, allow_changed: bool) -> State:
        """Put a checkpoint back. InputError: the data, or the number of processes, are others than when it was written;
        and as checkpoints and optimizers do where it doesn't fit."""
        said = found.state
        changed = fingerprint.differences(said["data"], self.prepared.print)
        if said["world"] != self.world.size:
            changed.append(f"there were {said['world']} processes and are {self.world.size}")
        if changed and not allow_changed:
            raise InputError(
                f"{found.path}: since then {'; '.join(changed)}. A run must go on with what it began with;"
                " --allow-changed goes on all the same"
            )
        self.take_weights(found)
        names, optimizers = optim.names(self.model), self.stepper.optimizers
        room = optim.room(optimizers, names, said["optimizer"])
        found.load("optimizer", room)
        optim.restore(optimizers, names, room, said["optimizer"])
        if said["scaler"]:  # else products were not in float16 then
            self.stepper.scaler.load_state_dict(said["scaler"])
        self.stepper.skipped = said["skipped"]
        state = State.from_json(said["loop"])
        state.batch = state.batch * said["world"] // self.world.size
        return state

    def take_weights(self, found: Checkpoint) -> None:
        """The weights alone, and their average."""
        found.load("weights", self.weights())
        if self.stepper.ema is not None:
            found.load("average", self.stepper.ema.tensors())

    def why_not(self, folder: Path, step: int) -> str | None:
        """Why `take_weights` can't have those of a step, on all ranks. None: it can."""

        def look() -> str | None:
            try:
                checkpoint.at(folder, step)
            except (NotFound, CorruptFile) as error:
                return str(error)
            return None

        return parallel.together(self.world, lambda: look() if self.world.first else None)[0]

    def bytes(self) -> int:
        """About how large a checkpoint is: weights, two moments, an average."""
        return 4 * sum(p.numel() for p in self.model.parameters()) * (3 if self.stepper.ema is None else 4)


def build(recipe: Recipe, prepared: Prepared, world: parallel.World) -> Machinery:
    """ConfigError, InputError: the recipe asks for what can't be."""
    train = recipe.train
    sizes = prepared.samples.sizes
    order = Order(sizes, recipe.batch, recipe.seed, rank=world.rank, world=world.size)
    loader = Loader(
        prepared.samples, order, prepared.objective, recipe.seed, recipe.data.workers, recipe.batch.accumulate
    )
    total = train.steps if train.epochs is None else loader.steps_in(train.epochs)
    check(train, total)
    model = prepared.model.to(world.device).train()
    learner = Learner(model, prepared.objective, train.dtype)
    if train.checkpoint_activations:
        checkpoint_activations(model)
    if train.compile:
        compile_blocks(model)
    module = parallel.wrap(learner, world, train.parallel)  # before the optimizer: FSDP2 makes other parameters
    optimizers = optim.make(model, train)
    ema = Ema(model, train.ema) if train.ema is not None else None
    stepper = Stepper(learner, module, optimizers, train, recipe.seed, world, ema)
    mean, length = float(sizes.mean()), recipe.batch.length
    flops = 3 * forward_flops(recipe, model.spec, mean if length is None else min(mean, length))
    return Machinery(model, stepper, loader, order, total, flops, world, prepared)


def facts(built: Machinery, recipe: Recipe) -> dict[str, Any]:
    """What the log's first line says of a run beside the recipe."""
    parameters = list(built.model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "model": recipe.model.origin or built.model.spec.family or "a spec",
        "data": fingerprint.digest(built.prepared.print),
        "processes": built.world.size,
    }
