"""A text as tokens that know where they come from: characters, words, segments, and which are the tokenizer's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer, models

Offset = tuple[int, int]


@dataclass(frozen=True)
class Pieces:
    """The tokens of one text, without those that a tokenizer adds. The lists are as long as there are tokens.

    offsets: each token's first character and the one after its last, in Python's characters of the text; with or
    without the space before a word, as the tokenizer has it. words: which word of the pre-tokenizer it is of."""

    ids: list[int]
    offsets: list[Offset]
    words: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> "Pieces":
        return Pieces(self.ids[part], self.offsets[part], self.words[part])

    @classmethod
    def of(cls, parts: Sequence[tuple[int, Encoding]]) -> "Pieces":
        """From encodings of a text's parts, each with the character that it begins at."""
        return cls.join([(at, cls(e.ids, e.offsets, [word or 0 for word in e.word_ids])) for at, e in parts])

    @classmethod
    def join(cls, parts: Sequence[tuple[int, "Pieces"]]) -> "Pieces":
        """The parts of a text, each with the character that it begins at, one after the other."""
        if len(parts) == 1 and parts[0][0] == 0:  # nearly always: nothing of it is to be counted anew
            return parts[0][1]
        whole = cls([], [], [])
        for at, part in parts:
            words = max(whole.words, default=-1) + 1
            whole.ids.extend(part.ids)
            whole.offsets.extend((start + at, end + at) for start, end in part.offsets)
            whole.words.extend(word + words for word in part.words)
        return whole


@dataclass(frozen=True)
class Encoded:
    """What a model reads: one text or two, and the special tokens around them. The lists are as long as `ids`.

    segments: token types. parts: which text a token is of (0 or 1), None for a special token; offsets and words as in
    Pieces, of that text."""

    ids: list[int]
    segments: list[int]
    parts: list[int | None]
    offsets: list[Offset | None]
    words: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, part: int) -> list[int]:
        """Where the tokens of a text stand, in order."""
        return [place for place, of in enumerate(self.parts) if of == part]


@dataclass(frozen=True)
class Slot:
    """A place in a frame: for a whole text (`part`), or for one special token (`id`, where `part` is None)."""

    part: int | None
    id: int
    segment: int


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around a text, or around two and between them: [CLS] a [SEP] b [SEP]."""

    slots: tuple[Slot, ...]

    @property
    def added(self) -> int:
        """Special tokens."""
        return sum(slot.part is None for slot in self.slots)

    def ids(self, ids: list[int]) -> list[int]:
        """The ids of one text, framed."""
        return [id for slot in self.slots for id in ([slot.id] if slot.part is None else ids)]

    def join(self, *texts: Pieces) -> Encoded:
        """One text or two, as the frame is for, framed."""
        whole = Encoded([], [], [], [], [])
        for slot in self.slots:
            if slot.part is None:
                more = Pieces([slot.id], [], [])
                whole.offsets.append(None)
                whole.words.append(None)
            else:
                more = texts[slot.part]
                whole.offsets.extend(more.offsets)
                whole.words.extend(more.words)
            whole.ids.extend(more.ids)
            whole.segments.extend([slot.segment] * len(more))
            whole.parts.extend([slot.part] * len(more))
        return whole


def frame(raw: Tokenizer, texts: int) -> Frame:
    """What a tokenizer's post-processor puts around one text or two: it frames two probes, whose ids are 0 and 1."""
    probe = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    probes = [probe.encode(text) for text in ("a", "b")]
    done = raw.post_process(probes[0], probes[1] if texts == 2 else None, True)
    rows = zip(done.ids, done.type_ids, done.special_tokens_mask, strict=True)
    return Frame(tuple(Slot(None if special else id, id, segment) for id, segment, special in rows))
