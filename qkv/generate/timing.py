"""How long an answer took, and how much memory had to be read for it.

Decoding is bound by memory: each step reads every weight once, and the keys and values held so far."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qkv import spec
from qkv.nn.stack import Transformer


@dataclass(frozen=True)
class Timing:
    """One prompt's times, from the start of its batch. A consumer's pauses between pieces are not in them.

    prefill_seconds: until its prompt was read. first_token_seconds: until its first token was chosen.
    decode_seconds: from then to its last token, `decode_steps` steps, which may have read other prompts too.
    bytes_read: weights, keys and values read in these steps, the other sequences' of the batch included.
    prompt_tokens: those that were read here (not what a given cache held). peak_memory: the process's, in bytes, or
    the GPU's where the model is on one; None where the system doesn't tell."""

    prompt_tokens: int
    prefill_seconds: float
    first_token_seconds: float
    decode_steps: int
    decode_seconds: float
    bytes_read: int
    peak_memory: int | None

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.prefill_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """None for an answer of one token, which was read off the prompt."""
        return self.decode_steps / self.decode_seconds if self.decode_steps else None

    @property
    def bytes_per_token(self) -> float | None:
        """Read for each of this answer's tokens after the first."""
        return self.bytes_read / self.decode_steps if self.decode_steps else None

    @property
    def gigabytes_per_second(self) -> float | None:
        """Bandwidth (10⁹ bytes) that decoding achieved."""
        return self.bytes_read / self.decode_seconds / 1e9 if self.decode_steps else None

    def to_dict(self) -> dict[str, float | int | None]:
        """All of the above, by name."""
        rates = ("prompt_tokens_per_second", "tokens_per_second", "bytes_per_token", "gigabytes_per_second")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in rates}}


class Traffic:
    """Bytes that one step of a model reads."""

    def __init__(self, model: Transformer) -> None:
        tensors = (*model.parameters(), *model.buffers())
        self.weights = sum(t.nbytes for t in tensors)
        # Of the tables only a few rows are read, unless the head multiplies by the whole table.
        self.weights -= sum(t.nbytes for t in model.decoder.embed.parameters())
        if isinstance(model.spec.head, spec.LMHead) and model.spec.head.tied:
            self.weights += model.decoder.embed.tokens.weight.nbytes
        self.keys: dict[int, int] = {}
        for block in model.spec.decoder:
            mixer = block.mixer
            if isinstance(mixer, spec.Attention):
                seen = mixer.mask.size if isinstance(mixer.mask, spec.Window) else sys.maxsize
                size = 2 * mixer.kv_heads * mixer.head_width(model.spec.dim) * model.dtype.itemsize
                self.keys[seen] = self.keys.get(seen, 0) + size

    def step(self, lengths: Sequence[int]) -> int:
        """With sequences of so many tokens held."""
        return self.weights + sum(size * min(n, seen) for n in lengths for seen, size in self.keys.items())


def peak_memory(device: torch.device) -> int | None:
    """The most that the GPU held for torch, or the process for itself, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
