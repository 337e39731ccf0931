"""How long an answer took, and how much memory had to be read for it.

Decoding is bound by memory: each step reads every weight once, and the keys and values held so far."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from qkv import spec
from qkv.nn.block import Crossing
from qkv.nn.cache import Cache
from qkv.nn.stack import Transformer


@dataclass(frozen=True)
class Timing:
    """One prompt's times, from the start of its batch. A consumer's pauses between pieces are not in them.

    prefill_seconds: until its prompt was read. first_token_seconds: until its first token was chosen.
    decode_seconds: from then to its last token, `decode_steps` steps, which may have read other prompts too.
    bytes_read: weights, keys and values read in these steps, the other sequences' of the batch included, a draft's not.
    guessed: tokens that were guessed and read too; accepted: how many of the answer's were guessed and so took no step
    of their own (1 + decode_steps + accepted is its length).
    prompt_tokens: those that were read here (not what a given cache held). peak_memory: the process's, in bytes, or
    the GPU's where the model is on one; None where the system doesn't tell. step: what computed the steps, native code
    or torch, and why."""

    prompt_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_steps: int
    decode_seconds: float
    bytes_read: int
    peak_memory: int | None
    guessed: int = 0
    accepted: int = 0
    step: str = ""

    @property
    def decode_tokens(self) -> int:
        """This answer's tokens after the first."""
        return self.decode_steps + self.accepted

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """None for an answer of one token, which was read off the prompt."""
        return self.decode_tokens / self.decode_seconds if self.decode_steps else None

    @property
    def bytes_per_token(self) -> float | None:
        """Read for each of this answer's tokens after the first."""
        return self.bytes_read / self.decode_tokens if self.decode_steps else None

    @property
    def gigabytes_per_second(self) -> float | None:
        """Bandwidth (10⁹ bytes) that decoding achieved."""
        return self.bytes_read / self.decode_seconds / 1e9 if self.decode_steps else None

    def to_dict(self) -> dict[str, float | int | str | None]:
        """All of the above, by name."""
        rates = ("prompt_tokens_per_second", "tokens_per_second", "bytes_per_token", "gigabytes_per_second")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in rates}}


@dataclass(frozen=True, slots=True)
class Moment:
    """Seconds until the last tokens were read, seconds until now, bytes read: since the start of the batch."""

    prefilled: float
    seconds: float
    read: int


class Watch:
    """Measures the steps of one batch. What a consumer does between them doesn't count."""

    def __init__(self, model: Transformer) -> None:
        self.device, self.traffic, self.how = model.device, Traffic(model), ""
        self.spent, self.prefilled, self.bytes = 0.0, 0.0, 0

    def start(self) -> None:
        """A step begins."""
        self.started = perf_counter()

    def read(self, cache: Cache, sources: Sequence[int] = ()) -> None:
        """The model has read its tokens into a cache, beside these lengths of an encoder."""
        self.bytes += self.traffic.step(cache.lengths, sources, cache.dtype)
        self.prefilled = self.spent + perf_counter() - self.started

    def now(self) -> Moment:
        """Within a step."""
        return Moment(self.prefilled, self.spent + perf_counter() - self.started, self.bytes)

    def stop(self) -> None:
        """The step ends."""
        self.spent += perf_counter() - self.started

    def timing(
        self, first: Moment, last: Moment, prompt_tokens: int, decode_steps: int, guessed: int = 0, accepted: int = 0
    ) -> Timing:
        """Of an answer between its first token and its last."""
        return Timing(
            prompt_tokens=prompt_tokens,
            prefill_seconds=first.prefilled,
            first_token_seconds=first.seconds,
            decode_steps=decode_steps,
            decode_seconds=last.seconds - first.seconds,
            bytes_read=last.read - first.read,
            peak_memory=peak_memory(self.device),
            guessed=guessed,
            accepted=accepted,
            step=self.how,
        )


class Traffic:
    """Bytes that one step of a model reads. (An encoder is read once, with the prompt.)"""

    def __init__(self, model: Transformer) -> None:
        self.weights = sum(_nbytes(part) for part in (model.last, model.head))
        # Of the tables only a few rows are read, unless the head multiplies by the whole table.
        self.weights -= _nbytes(model.last.embed)
        if isinstance(model.spec.head, spec.LMHead) and model.spec.head.tied:
            self.weights += model.table.nbytes
        self.dtype = model.dtype
        self.keys: dict[int, int] = {}  # numbers a token, by how many tokens are seen
        self.memory = 0  # numbers of a source's token
        for block in model.spec.last:
            mixer = block.mixer
            if isinstance(mixer, spec.Attention):
                seen = mixer.mask.size if isinstance(mixer.mask, spec.Window) else sys.maxsize
                self.keys[seen] = self.keys.get(seen, 0) + _held(mixer, model.spec.dim)
            if block.cross is not None:
                self.memory += _held(block.cross, model.spec.dim)
        for layer in model.last.blocks:
            if isinstance(layer, Crossing):  # its keys and values are made once
                self.weights -= _nbytes(layer.cross.k) + _nbytes(layer.cross.v)

    def step(self, lengths: Sequence[int], sources: Sequence[int] = (), dtype: torch.dtype | None = None) -> int:
        """With sequences of so many tokens held, in this dtype (None: the model's), and an encoder's of so many."""
        own = sum(size * min(n, seen) for n in lengths for seen, size in self.keys.items())
        return self.weights + (own + self.memory * sum(sources)) * (dtype or self.dtype).itemsize


def _nbytes(part: nn.Module) -> int:
    return sum(t.nbytes for t in (*part.parameters(), *part.buffers()))


def _held(attention: spec.Attention, dim: int) -> int:
    """Numbers in a token's keys and values."""
    return 2 * attention.kv_heads * attention.head_width(dim)


def peak_memory(device: torch.device) -> int | None:
    """The most that the GPU held for torch, or the process for itself, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
