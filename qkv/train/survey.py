"""What training data hold, without reading all of them through the tokenizer: records counted, some of them encoded."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qkv.errors import InputError


@dataclass(frozen=True)
class Drawn:
    """Some records drawn at random of `counted`, which are all there are if `whole`."""

    records: list[Any]
    counted: int
    whole: bool


@dataclass(frozen=True)
class Survey:
    """What the training data hold. `samples` (of a record) and `tokens` (of a sample, as the model reads it) are means
    over `encoded` of the `records`, `bad` of which couldn't be (`why`: the first); `whole`: all were counted."""

    records: int
    samples: float
    tokens: float
    whole: bool
    encoded: int
    bad: int = 0
    why: str = ""


def draw(records: Iterable[Any], most: int = 400, seconds: float = 10.0) -> Drawn:
    """Count records, for `seconds` at most, and keep `most` of them, each with the same chance (Vitter 1985)."""
    kept: list[Any] = []
    chance, end, counted = random.Random(0), time.monotonic() + seconds, 0
    for record in records:
        counted += 1
        if len(kept) < most:
            kept.append(record)
        elif (place := chance.randrange(counted)) < most:
            kept[place] = record
        if time.monotonic() > end:
            return Drawn(kept, counted, False)
    return Drawn(kept, counted, True)


def survey(drawn: Drawn, encode: Callable[[Any], Sequence[Any]], size: Callable[[Any], int]) -> Survey:
    """Encode what was drawn. InputError: nothing was, or no record is what it should be (it says why)."""
    lengths: list[int] = []
    bad: list[InputError] = []
    for record in drawn.records:
        try:
            lengths += [size(sample) for sample in encode(record)]
        except InputError as error:
            bad.append(error)
    encoded, why = len(drawn.records), str(bad[0]) if bad else ""
    if not lengths:
        raise InputError(f"none of {encoded} training records gives anything to train on{f': {why}' if why else ''}")
    mean = sum(lengths) / len(lengths)
    return Survey(drawn.counted, len(lengths) / encoded, mean, drawn.whole, encoded, len(bad), why)
