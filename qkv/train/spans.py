"""T5's ways to learn from plain text (arXiv 1910.10683, §3.1.4 and §3.2): corrupted spans, and a text's end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer
from qkv.train import loss, recipe
from qkv.train.causal import check_causal, closing, shifted
from qkv.train.framed import pieces_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective
from qkv.train.translate import check_end, forced, start_of


def sentinels(tokenizer: Tokenizer) -> list[int]:
    """The ids of <extra_id_0>, <extra_id_1>, … ConfigError: there are none."""
    found: list[int] = []
    while (id := tokenizer.id(f"<extra_id_{len(found)}>")) is not None:
        found.append(id)
    if not found:
        raise ConfigError("the tokenizer has no <extra_id_0>, <extra_id_1>, …, by which T5's spans are named")
    return found


def noise(length: int, rate: float, mean: float) -> tuple[int, int]:
    """How many tokens of a text are hidden, in how many spans: at least one, never all."""
    hidden = min(max(round(length * rate), 1), length - 1)
    return hidden, min(max(round(hidden / mean), 1), hidden, length - hidden)


def corrupted(length: int, rate: float, mean: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens are hidden [length]: as T5's random_spans_noise_mask, kept and hidden spans by turns, kept first,
    each parted at random."""
    if length < 2:
        return np.zeros(length, bool)
    hidden, spans = noise(length, rate, mean)
    lengths = np.stack((_parted(length - hidden, spans, draw), _parted(hidden, spans, draw)), 1).ravel()
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _parted(items: int, parts: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """`items` in so many parts, none empty, each way as likely as any."""
    cuts = np.sort(draw.choice(items - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=items)


def replaced(ids: NDArray[np.int32], hidden: NDArray[np.bool_], names: NDArray[np.int32]) -> NDArray[np.int32]:
    """ids with each hidden span replaced by its sentinel, the spans' in their order."""
    first = hidden & ~np.concatenate(([False], hidden[:-1]))
    out = ids.copy()
    out[first] = names[: int(first.sum())]
    return out[~hidden | first]


class Text(Objective):
    """Learns from a text. Samples hold its tokens without special ones: frames come after the noise."""

    fields = ("text",)
    added = 1  # tokens that the noise may add

    def __init__(self, settings: recipe.Objective, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        self.frame, self.closing = tokenizer.frame(), closing(tokenizer)
        slots = self.frame.slots
        text = [slot.part for slot in slots].index(0)
        self.before, self.after = (
            np.array([slot.id for slot in x], np.int32) for x in (slots[:text], slots[text + 1 :])
        )
        self.lengths = Lengths(self, settings.on_long, most(model, length), least=2)

    def encode(self, record: Record) -> list[Sample]:
        """InputError: no text, one too long, or too short to be parted."""
        text = text_of(record, "text")
        pieces = pieces_of(self.tokenizer, [text])[0]
        if len(pieces) < 2:
            raise InputError("the text has one token: there is nothing to tell from anything")
        around = self.frame.added + len(self.closing) + self.added
        return [self.sample(text, pieces, part) for part in self.lengths.ranges(len(pieces), around)]

    def sample(self, text: str, pieces: Pieces, part: range) -> Sample:
        """What is kept of these tokens."""
        return {"ids": np.array(pieces.ids[part.start : part.stop], np.int32)}

    def framed(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Tokens as the tokenizer frames a text."""
        return np.concatenate((self.before, ids, self.after))

    def ended(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The same, with eos at the end."""
        return np.concatenate((self.before, ids, self.after, np.array(self.closing, np.int32)))

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        return loss.of_feed(model, feed, self.settings.smoothing)


@objective(recipe.Spans)
class Spans(Text):
    """Span corruption: the encoder reads the text with each hidden span as a sentinel, the decoder says sentinels and
    spans. (The paper's Figure 2 ends the target with one more sentinel; its released code, and this, with eos.)"""

    def __init__(self, settings: recipe.Spans, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        self.start = start_of(model, settings.kind)
        check_end(tokenizer)
        self.names = np.array(sentinels(tokenizer), np.int32)

    def encode(self, record: Record) -> list[Sample]:
        """InputError: as Text, or more spans than sentinels."""
        samples = super().encode(record)
        spans = max((self._noise(one)[1] for one in samples), default=0)
        if spans > len(self.names):
            raise InputError(
                f"the text would have {spans} spans, and the tokenizer names {len(self.names)} (<extra_id_…>): lower "
                "batch.length or objective.rate, or raise objective.mean"
            )
        return samples

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        sources, targets = [], []
        for one in samples:
            hidden = corrupted(len(one["ids"]), self.settings.rate, self.settings.mean, draw)
            sources.append(self.framed(replaced(one["ids"], hidden, self.names)))
            said = self._said(one["ids"], hidden)
            targets.append(self.ended(said))
        return forced(sources, targets, self.start)

    def _said(self, ids: NDArray[np.int32], hidden: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Each hidden span behind its sentinel."""
        first = np.flatnonzero(hidden & ~np.concatenate(([False], hidden[:-1])))
        return np.insert(ids, first, self.names[: len(first)])[np.insert(hidden, first, True)]

    def size(self, sample: Sample) -> int:
        """Source and target together."""
        return len(sample["ids"]) + 2 * (self._noise(sample)[1] + self.frame.added) + len(self.closing)

    def _noise(self, sample: Sample) -> tuple[int, int]:
        return noise(len(sample["ids"]), self.settings.rate, self.settings.mean)


@objective(recipe.Prefix)
class Prefix(Text):
    """A text cut in two at a random place. An encoder–decoder reads the first part and says the second. A decoder alone
    reads both, each token seeing those before it in the prefix too (its mask stays causal, where T5's prefix sees both
    ways), and the second part alone is learned."""

    added = 0

    def __init__(self, settings: recipe.Prefix, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        if model.encoder is not None and model.decoder is not None:
            self.start, self.parted = start_of(model, settings.kind), self._pairs
            check_end(tokenizer)
        else:
            check_causal(model, settings.kind)
            self.parted = self._ends

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        return self.parted([one["ids"] for one in samples], [int(draw.integers(1, len(one["ids"]))) for one in samples])

    def _pairs(self, ids: Sequence[NDArray[np.int32]], cuts: Sequence[int]) -> Feed:
        pairs = list(zip(ids, cuts, strict=True))
        sources = [self.framed(own[:cut]) for own, cut in pairs]
        return forced(sources, [self.ended(own[cut:]) for own, cut in pairs], self.start)

    def _ends(self, ids: Sequence[NDArray[np.int32]], cuts: Sequence[int]) -> Feed:
        return shifted([self.ended(own) for own in ids], [cut + len(self.before) for cut in cuts])
