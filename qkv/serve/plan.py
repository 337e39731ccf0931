"""What the model does in one step: which sequences read how many tokens, and which pages are copied before that."""

from collections.abc import Sequence as Counts
from dataclasses import dataclass

from qkv.serve.sequence import Sequence


@dataclass(slots=True)
class Row:
    """One sequence's part of a step: it reads `count` tokens behind `start`, which has pages for all of them.

    `last`: nothing is left to read then, so the answer's next token comes from this row's last logits."""

    sequence: Sequence
    count: int
    start: int
    last: bool

    @property
    def tokens(self) -> list[int]:
        """The ids that it reads."""
        return self.sequence.ids[self.start : self.start + self.count]

    @property
    def of_prompt(self) -> int:
        """How many of these are of its prompt."""
        return max(0, min(self.count, len(self.sequence.prompt) - self.start))


@dataclass(slots=True)
class Plan:
    """A step. `copies`: (from, to), pages to copy before any row is written, in this order or all at once.

    `sources`: sequences whose source an encoder has to read first, into their `source_pages`. The rows that read one
    token come first."""

    rows: list[Row]
    copies: list[tuple[int, int]]
    sources: list[Sequence]

    @property
    def tokens(self) -> int:
        """Read in this step, sources not counted."""
        return sum(row.count for row in self.rows)


def quarter(budget: int) -> int:
    """What is kept for those that would else wait behind others, of so many tokens."""
    return -(-budget // 4)


def share_out(rests: Counts[int], budget: int, reserve: int = 0) -> list[int]:
    """How many of each sequence's unread tokens a step reads, `budget` - `reserve` in all at most.

    The shortest rest goes first, because then the mean time to a first token is least. The first in the list, which is
    there longest, has a quarter of the budget all the same: so the longest prompt is read some day."""
    counts = [0] * len(rests)
    if not rests or budget < 1:
        return counts
    counts[0] = min(rests[0], quarter(budget))
    left = budget - reserve - counts[0]
    for i in sorted(range(len(rests)), key=rests.__getitem__):
        if left <= 0:
            break
        more = min(rests[i] - counts[i], left)
        counts[i] += more
        left -= more
    return counts
