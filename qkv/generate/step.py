"""One step of a model: ids of several sequences in, the logits that are wanted out; and the cache before it."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from qkv.generate.limits import check_ids
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache
from qkv.nn.fixed import Memory
from qkv.nn.lower import NotServed
from qkv.nn.modes import evaluating
from qkv.nn.native_step import NativeStep
from qkv.nn.stack import Transformer


def share(waiting: Sequence[int], chunk: int) -> list[int]:
    """How many of each sequence's waiting tokens the next step reads: as evenly as can be, `chunk` in all (but at least
    one each, so more sequences than that read one each)."""
    if sum(waiting) <= chunk:
        return list(waiting)
    counts, left = [0] * len(waiting), chunk
    order = sorted(range(len(waiting)), key=waiting.__getitem__)
    for done, i in enumerate(order):
        counts[i] = min(waiting[i], max(1, left // (len(order) - done)))
        left -= counts[i]
    return counts


class Reader:
    """A model's steps: by the native library where it can do them, else by torch.

    It is made for one run: the native step holds the weights as they are when it is made."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.steps, self.by_torch = model, 0, 0
        try:
            self.native: NativeStep | None = NativeStep(model)
        except NotServed as why:
            self.native, self.why = None, str(why)

    @property
    def apart(self) -> bool:
        """Do a prompt's tokens get other products than an answer's? Then keys differ in their last digits too."""
        return self.native is not None and self.native.apart

    @property
    def how(self) -> str:
        """What did the steps so far, and why where it was torch."""
        if self.native is None or self.steps == self.by_torch > 0:
            return f"torch ({self.why})"
        level = f"native ({self.native.library.level})"
        return f"{level}; torch for {self.by_torch} of {self.steps} steps: {self.why}" if self.by_torch else level

    @torch.no_grad()
    def __call__(
        self,
        chunks: Sequence[Sequence[int]],
        cache: Cache,
        wanted: Sequence[int],
        prompts: Sequence[int] | None = None,
    ) -> Tensor:
        """Feed each sequence its chunk → logits [sum of wanted, V], sequence by sequence, after each of its last
        `wanted[i]` tokens (0: none of this one). The first `prompts[i]` tokens of a chunk are of a prompt (None: none).

        Not inference_mode: what is in the cache can be used outside."""
        lengths = [len(chunk) for chunk in chunks]
        batch = Batch(lengths, cache.starts(lengths), self.model.device, prompts=prompts)
        ids = [i for chunk in chunks for i in chunk]
        ends = accumulate(lengths)
        places = [end - back for end, n in zip(ends, wanted, strict=True) for back in range(n, 0, -1)]
        check_ids("a step", ids, self.model.spec.vocab)
        self.steps += 1
        if self.native is not None:
            why = self.native.refuses(batch, cache)
            if why is None:
                return self.native(ids, batch, cache, places)
            self.why = why
        self.by_torch += 1
        return self._by_torch(ids, batch, cache, places)

    def _by_torch(self, ids: list[int], batch: Batch, cache: Cache, places: list[int]) -> Tensor:
        model, device = self.model, self.model.device
        with evaluating(model):
            states = model.states(torch.tensor(ids, device=device), batch, cache)
            if len(places) < len(states):
                states = states[torch.tensor(places, dtype=torch.long, device=device)]
            return model.logits(states)


@torch.no_grad()
def new_cache(model: Transformer, sources: Sequence[list[int]], length: int | None, chunk: int) -> Cache:
    """An empty cache for `length` tokens of each of so many sequences (None: it grows), beside what an encoder makes of
    their sources, where there is one. It reads `chunk` tokens of them at a time, and at least one whole source."""
    if model.encoder is None or model.decoder is None:
        return model.new_cache(length)
    with evaluating(model):
        parts = [model.encode(group).states for group in _groups(sources, chunk)]
    lengths = [len(source) for source in sources]
    return model.new_cache(length, memory=Memory(torch.cat(parts), Batch(lengths, [0] * len(lengths), model.device)))


def _groups(sources: Sequence[list[int]], chunk: int) -> Iterator[list[list[int]]]:
    group: list[list[int]] = []
    for source in sources:
        if group and sum(map(len, group)) + len(source) > chunk:
            yield group
            group = []
        group.append(source)
    yield group
