"""Many processes, each with one device, as torchrun starts them; one process needs no launcher and no process group.

What a wrapped module leaves in its gradients is their sum over all ranks, not the mean: the loop divides each loss by
the targets of all ranks' micro-batches, and two ranks then learn what one would from twice as many micro-batches.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from qkv.errors import ConfigError, QkvError
from qkv.nn.block import Crossing
from qkv.nn.stack import Stack
from qkv.train.slices import is_sharded, slice_of

AXES = ("pipeline", "data", "context", "tensor")  # of the mesh; all but "data" have one rank so far
TIMEOUT = 60.0  # seconds that a step's collectives wait for a rank
PATIENCE = 1800.0  # seconds that `barrier` and `gather` wait: a rank may be writing gigabytes, or evaluating
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
T = TypeVar("T")


class Elsewhere(QkvError):
    """Another rank failed at what all do together; the message is its error's."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is, and its device. `World()` is alone.

    patient: the group of `barrier` and `gather` (None: alone)."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    patient: dist.ProcessGroup | None = None

    @classmethod
    def from_environment(
        cls, device: str | None = None, *, timeout: float = TIMEOUT, patience: float = PATIENCE
    ) -> "World":
        """The world that torchrun's variables describe, its ranks connected: by gloo, GPUs among themselves by NCCL.

        device: "cpu" or "cuda" (None: "cuda" if there is one). A rank that dies ends the others with an error, at once
        where its connections close with it, and after `timeout` seconds at the latest (`patience`: while the others
        wait for it in `barrier` or `gather`). ConfigError: variables that are missing or don't fit."""
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        size = _number("WORLD_SIZE", 1)
        if size == 1:
            return cls(device=torch.device(kind))
        missing = [name for name in LAUNCHED if name not in os.environ]
        if missing:
            raise ConfigError(f"WORLD_SIZE is {size} and {', '.join(missing)} is not set: start the ranks by torchrun")
        rank, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
        if not 0 <= rank < size:
            raise ConfigError(f"RANK is {rank} in a WORLD_SIZE of {size}")
        own = torch.device(kind)
        if kind == "cuda":
            own = _gpu(local)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            timeout=timedelta(seconds=timeout),
            device_id=own if kind == "cuda" else None,
        )
        patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))
        return cls(rank, local, size, own, patient)

    @property
    def first(self) -> bool:
        """Is this the rank that writes and speaks?"""
        return self.rank == 0

    @cached_property
    def mesh(self) -> DeviceMesh:
        """All ranks along `AXES`."""
        shape = tuple(self.size if axis == "data" else 1 for axis in AXES)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=AXES)

    def close(self) -> None:
        """Leave the group, at the end of a run."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = World()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name} must be a whole number, got {text!r:.40}")
    return int(text)


def _gpu(local: int) -> torch.device:
    if local >= torch.cuda.device_count():
        raise ConfigError(f"LOCAL_RANK is {local}, and this machine has {torch.cuda.device_count()} GPUs")
    own = torch.device("cuda", local)
    torch.cuda.set_device(own)
    return own


# --- a module on all ranks ------------------------------------------------------------------------------------------


def wrap(module: nn.Module, world: World, kind: Literal["ddp", "fsdp"], *, unused: bool = False) -> nn.Module:
    """The module on all ranks, with rank 0's weights, its gradients summed over the ranks. Alone: the module itself.

    Its forward must return the loss. "ddp": each rank holds all weights (arXiv 2006.15704); `unused`: some have no
    gradient in some steps (slower; better is to freeze them). "fsdp": each holds a share of the rows of each weight
    (ZeRO-3, arXiv 1910.02054; torch's FSDP2), gathered block by block; the module is changed in place and its
    parameters are other objects then: make the optimizer after."""
    if world.size == 1:
        return module
    if kind == "fsdp":
        return _sharded(module, world)
    wrapped = nn.parallel.DistributedDataParallel(
        module,
        process_group=world.mesh["data"].get_group(),
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
    )
    wrapped.register_comm_hook(world.mesh["data"].get_group(), _summed)
    return wrapped


def _summed(
    group: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """DDP's own hook without its division by the ranks."""
    work = dist.all_reduce(bucket.buffer(), group=cast(dist.ProcessGroup, group), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])  # type: ignore[no-any-return]


def _sharded(module: nn.Module, world: World) -> nn.Module:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.detach(), 0)
    blocks = [block for part in module.modules() if isinstance(part, Stack) for block in part.blocks]
    mesh, common = world.mesh["data"], _common(blocks)
    for block in blocks:
        for part in _ahead(block):
            fully_shard(part, mesh=mesh)
        fully_shard(block, mesh=mesh, ignored_params=common)
    fully_shard(module, mesh=mesh)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return module


def _ahead(block: nn.Module) -> list[nn.Module]:
    """Parts of a block that run before it does: keys and values of an encoder's states."""
    cross = block.cross if isinstance(block, Crossing) else None
    parts = [] if cross is None else [cross.k, cross.v, cross.k_norm]
    return [part for part in parts if any(True for _ in part.parameters())]


def _common(blocks: list[nn.Module]) -> set[nn.Parameter]:
    """Parameters of several blocks, such as T5's one table of distances: they are the whole module's."""
    seen: set[nn.Parameter] = set()
    common: set[nn.Parameter] = set()
    for block in blocks:
        own = set(block.parameters())
        common |= own & seen
        seen |= own
    return common


@contextmanager
def accumulating(module: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch: gradients cross between ranks after the `last` of a step only."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        with nullcontext() if last else module.no_sync():
            yield
        return
    sync = getattr(module, "set_requires_gradient_sync", None)  # FSDP2 gives the module this method
    if sync is not None:
        sync(last)
    yield


@torch.no_grad()
def clip_norm(parameters: Iterable[nn.Parameter], max_norm: float | None, world: World = ALONE) -> Tensor:
    """The norm [] of all gradients, over the rows of all ranks; beyond `max_norm` they are scaled to it in place, as
    torch's clip_grad_norm_ does. Where it isn't finite they all become NaN: look at it before the step."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    own = [slice_of(grad).rows for grad in grads if not is_sharded(grad)]
    rows = [slice_of(grad).rows for grad in grads if is_sharded(grad)]
    total = nn.utils.get_total_norm(own).to(world.device)
    if rows:
        squared = sum_over(world, nn.utils.get_total_norm(rows).to(world.device) ** 2)
        total = torch.sqrt(total**2 + squared)
    if max_norm is not None and grads:
        torch._foreach_mul_([*own, *rows], (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from sharded ones, by all ranks together; those that are whole stay the same objects. For the
    model that a run leaves, and for evaluation outside the wrapped module."""
    return {name: cast(Any, t.detach()).full_tensor() if is_sharded(t) else t for name, t in tensors.items()}


# --- what ranks tell each other -------------------------------------------------------------------------------------


def sum_over(world: World, tensor: Tensor) -> Tensor:
    """The sum of all ranks' tensors of one shape, a new tensor."""
    total = tensor.detach().clone()
    if world.size > 1:
        dist.all_reduce(total)
    return total


def any_rank(world: World, flag: bool) -> bool:
    """Is it so on any rank? All ranks get the same answer."""
    return bool(sum_over(world, torch.tensor(int(flag)))) if world.size > 1 else flag


def barrier(world: World) -> None:
    """Wait for all ranks, however long they evaluate or write (`patience`)."""
    if world.size > 1:
        dist.monitored_barrier(world.patient)


def gather(world: World, value: Any) -> list[Any]:
    """Each rank's value, of what JSON can say, in the order of ranks; as patient as `barrier`."""
    if world.size == 1:
        return [value]
    raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([len(raw)]), group=world.patient)
    longest = max(int(size) for size in sizes)
    padded = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(padded, nn.functional.pad(raw, (0, longest - len(raw))), group=world.patient)
    return [json.loads(bytes(text[: int(size)].tolist())) for text, size in zip(padded, sizes, strict=True)]


def together(world: World, work: Callable[[], T]) -> list[T]:
    """What `work` gives on each rank, of JSON's kinds. Where it fails, that rank raises its error once all have come so
    far, and the others raise Elsewhere: none goes on alone, none waits for long."""
    told, failed = None, None
    try:
        told = work()
    except BaseException as error:  # a signal's too: the others are waiting
        failed = error
    answers = gather(world, [told, None if failed is None else f"{type(failed).__name__}: {failed}"])
    if failed is not None:
        raise failed
    for rank, (_, theirs) in enumerate(answers):
        if theirs is not None:
            raise Elsewhere(f"rank {rank} failed: {theirs}")
    return [answer for answer, _ in answers]
