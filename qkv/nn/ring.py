"""The storage behind a window: it forgets what no query can see any more.

T  new tokens in the stream    B  sequences    G  key/value heads    D  head_dim    K  keys held
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from qkv.errors import InputError
from qkv.nn.attend import Keys
from qkv.nn.batch import Batch
from qkv.nn.cache import Held, side_by_side


class Ring(Held):
    """The last `size` keys, position p in slot p mod `slots`: all that a window of that size can ever see.

    `at_once`: take all its memory at the first step, not as it fills. `slots`: size, and what `reserve` has added."""

    def __init__(self, size: int, at_once: bool = False) -> None:
        super().__init__(at_once=size if at_once else None, most=size)
        self.size = size
        # The most tokens there ever were of each sequence; ahead of the cache's lengths where the last ones were taken
        # back, or read in a step that was cut off. Only what they pushed out is gone.
        self.ends: list[int] = []

    @property
    def slots(self) -> int:
        """Keys of a sequence that there is room for."""
        return self.most

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.ends = [self.ends[r] for r in rows]

    def reserve(self, tokens: int) -> None:
        if self.k is None:
            self.most = self.size + max(tokens - 1, 0)  # one is undoable as it is: its slot's last key is not seen
            self.at_once = self.at_once and self.most

    def undoable(self, length: int) -> int:
        return max(self.slots - length, self.slots - self.size + 1)

    def truncate(self, lengths: Sequence[int]) -> None:
        if not self._hold(lengths):
            raise InputError(
                f"a window of {self.size} can't go back from {self.ends} tokens to {list(lengths)}: its older keys are"
                " gone; `reserve` room for that before the first step"
            )

    def _hold(self, lengths: Sequence[int]) -> bool:
        """Is every key there that the next query of such sequences may see?

        Position e − 1 has pushed out e − 1 − slots, and the query at n sees n − size + 1 and later."""
        pairs = zip_longest(lengths, self.ends[: len(lengths)], fillvalue=0)
        return all(n == 0 or max(n - self.size + 1, 0) > end - 1 - self.slots for n, end in pairs)

    def extend(self, k: Tensor, v: Tensor, batch: Batch) -> Keys:
        if not self._hold(batch.starts):
            raise InputError(
                "the last step with this cache was cut off after its keys had pushed out older ones: start a new cache"
            )
        computed = k.dtype
        K, V = self.room(k, batch)
        k, v = k.to(K.dtype), v.to(V.dtype)
        if max(batch.lengths) == 1:
            self._write(K, V, k, v, batch)
            return self._seen(K, V, batch.ends, batch, computed)

        # A chunk's first queries still see keys that its last ones push out: look at old and new side by side.
        old, new = self._seen(K, V, batch.starts, batch, computed), side_by_side(k.to(computed), v.to(computed), batch)
        seen = torch.cat((old.k, new.k), 2), torch.cat((old.v, new.v), 2)
        self._write(K, V, k, v, batch)
        rows = len(batch.lengths)

        def positions() -> Tensor:
            return torch.cat((old.positions().expand(rows, -1), new.positions().expand(rows, -1)), 1)

        layout = ("ring", self.slots)
        return Keys(*seen, lambda: batch.once((*layout, "and new"), positions), layout, old.in_order)

    def _seen(self, K: Tensor, V: Tensor, ends: Sequence[int], batch: Batch, dtype: torch.dtype) -> Keys:
        """The slots in use once `ends` tokens are there, as numbers of this dtype."""
        used = (slice(None), slice(None), slice(min(max(ends), self.slots)))

        def positions() -> Tensor:
            """The largest p < end with p mod slots = slot; −1 where there is none. Of a slot whose key was taken back
            that is the key it pushed out, which is before all windows."""
            slots = torch.arange(used[2].stop, device=K.device)
            last = torch.tensor(list(ends), device=K.device)[:, None] - 1
            return (last - (last - slots) % self.slots).clamp(min=-1)

        layout = ("ring", self.slots)
        in_order = batch.aligned and ends[0] <= self.slots
        seen = K[used].to(dtype), V[used].to(dtype)
        return Keys(*seen, lambda: batch.once(layout, positions), layout, in_order)

    def _write(self, K: Tensor, V: Tensor, k: Tensor, v: Tensor, batch: Batch) -> None:
        """The last `slots` new tokens of each sequence into their slots."""
        before = [end if start else 0 for start, end in zip_longest(batch.starts, self.ends, fillvalue=0)]
        self.ends = [max(pair) for pair in zip(batch.ends, before, strict=False)]
        rows, slots, keep = batch.once(("ring slots", self.slots), lambda: self._slots(batch))
        K[rows, :, slots] = k[keep]
        V[rows, :, slots] = v[keep]

    def _slots(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Sequence and slot of each new token that is kept, and where in the stream it is."""
        ends = torch.tensor(batch.ends, device=batch.device)
        keep = torch.nonzero(batch.positions >= ends[batch.rows] - self.slots)[:, 0]
        return batch.rows[keep], batch.positions[keep] % self.slots, keep
