"""Where sentences begin, for objectives that move them about. A rule of thumb: abbreviations count as ends."""

import re

from qkv.inputs.encoded import Pieces
from qkv.tasks.windows import trim

_END = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+|[。！？]+[」』”]*\s*|\n+\s*")


def starts(text: str, pieces: Pieces) -> list[int]:
    """The places of the tokens that begin a sentence of `text`, the first one's (0) among them."""
    places, begins = [0], iter([*(match.end() for match in _END.finditer(text)), len(text)])
    edge = next(begins)
    for place, (start, end) in enumerate(pieces.offsets):
        first = trim(text, start, end)[0]  # a token may have the space before its word
        if first >= edge < len(text):
            places.append(place)
            while edge <= first:
                edge = next(begins)
    return sorted(set(places))
