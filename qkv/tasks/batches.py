"""Which texts a model reads together, and in which mode."""

from collections.abc import Sequence


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices from the shortest to the longest (equal ones in order), in groups of at most `budget` tokens.

    What is longer than the budget stands alone. Neighbours are about as long as each other, so attention, which sees
    them as rows of one grid, has next to no empty cells to compute."""
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[i] > room or not groups:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= lengths[i]
    return groups
