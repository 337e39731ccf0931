"""Steps of a decoder by the native library: which ones it takes, and what it needs of a cache.

T  tokens in a step    V  vocabulary
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qkv.kernels.native import native, reason
from qkv.nn.batch import Batch
from qkv.nn.cache import Cache, Contiguous, Kept
from qkv.nn.lower import NotServed, Written
from qkv.nn.paged import Paged
from qkv.nn.stack import Transformer
from qkv.nn.untouched import touched

FEW = 8  # rows: beyond, torch's products with plain matrices are faster
CACHED = (torch.float32, torch.bfloat16)


class NativeStep:
    """A model's steps by the native library, with the weights as they are now: make a new one after changing the model.
    NotServed: it has a part that is not written down here."""

    def __init__(self, model: Transformer) -> None:
        library = native()
        if library is None:
            raise NotServed(reason())
        if why := touched(model):
            raise NotServed(why)
        if model.device.type != "cpu" or model.dtype not in CACHED:
            raise NotServed(f"{str(model.dtype).removeprefix('torch.')} on {model.device.type}")
        self.library, self.model, self.plans = library, model, dict[int, Written]()
        written = self._plan(1)
        self.most_rows: int | None = None if written.all_packed else FEW
        # Steps beyond a window are torch's, for all that are in one: what a row gets must not depend on them.
        self.apart = library.bulk and written.all_packed and written.window is None

    def refuses(self, batch: Batch, cache: Cache) -> str | None:
        """Why this step is for torch; None: it is served."""
        if self.most_rows is not None and sum(batch.lengths) > self.most_rows:
            return "many tokens by plain matrices"
        window = self._plan(1).window
        if window is not None and max(batch.ends) > window:
            return "a text beyond the window"
        return None if all(_keeps(kept) for kept in cache.layers) else "a cache of windows, or of another dtype"

    def __call__(self, ids: Sequence[int], batch: Batch, cache: Cache, picked: Sequence[int]) -> Tensor:
        """ids [T] of a batch, all within the vocabulary, in a step that it doesn't refuse → logits [len(picked), V]
        float32 after these places of the stream; the cache then holds the tokens too."""
        logits = self._plan(len(ids)).run(ids, batch, cache, picked, batch.prompts if self.apart else None)
        cache.advance(batch)
        return logits

    def _plan(self, T: int) -> "Written":
        rows = max(8, 1 << (T - 1).bit_length())
        if rows not in self.plans:
            self.plans[rows] = Written(self.library, self.model, rows)
        return self.plans[rows]


def _keeps(kept: Kept) -> bool:
    """Can the library's attention read and fill it?"""
    if type(kept) is Paged:
        return kept.k.dtype in CACHED
    if type(kept) is not Contiguous:
        return False
    dtype = kept.dtype if kept.k is None else kept.k.dtype
    return dtype is None or dtype in CACHED
