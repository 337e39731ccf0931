"""BART's denoising (arXiv 1910.13461, §2.2): a text is damaged in several ways, and told again whole."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qkv import spec
from qkv.errors import ConfigError
from qkv.inputs.encoded import Pieces
from qkv.inputs.text import Tokenizer
from qkv.train import recipe, sentences
from qkv.train.objective import Feed, Sample, objective
from qkv.train.spans import Text
from qkv.train.translate import check_end, forced, start_of

Ids = NDArray[np.int32]


def infilled(ids: Ids, rate: float, mean: float, mask: int, draw: np.random.Generator) -> Ids:
    """Spans of Poisson(`mean`) tokens, `rate` of all together, each replaced by one mask; an empty span puts one
    between two tokens. No two spans touch, where there is room. Never longer than ids."""
    hidden = round(len(ids) * rate)
    lengths: list[int] = []
    while sum(lengths) < hidden:
        lengths.append(min(int(draw.poisson(mean)), hidden - sum(lengths)))
    while len(lengths) > hidden:
        lengths.remove(0)
    gaps = len(ids) - hidden + 1  # before, between and after the tokens that stay
    before = np.sort(draw.choice(gaps, len(lengths), replace=len(lengths) > gaps))
    out, at = [], 0
    for length, kept, more in zip(lengths, before.tolist(), np.cumsum([0, *lengths]).tolist(), strict=False):
        start = kept + more  # spans before this one took `more` tokens out
        out += [ids[at:start], np.array([mask], np.int32)]
        at = start + length
    return np.concatenate([*out, ids[at:]])


def shuffled(ids: Ids, begins: NDArray[np.int32], draw: np.random.Generator) -> Ids:
    """The sentences, which begin at these places, in another order."""
    parts = np.split(ids, begins[begins > 0])
    return np.concatenate([parts[i] for i in draw.permutation(len(parts))])


def deleted(ids: Ids, rate: float, draw: np.random.Generator) -> Ids:
    """Without `rate` of the tokens; one at least stays."""
    stays = np.sort(draw.permutation(len(ids))[: max(1, len(ids) - round(len(ids) * rate))])
    return ids[stays]


def rotated(ids: Ids, draw: np.random.Generator) -> Ids:
    """From some token on, and then what was before it."""
    return np.roll(ids, -int(draw.integers(len(ids))))


@objective(recipe.Denoise)
class Denoise(Text):
    """In this order: sentences shuffled, spans infilled, tokens deleted, and `rotate` of the texts rotated."""

    added = 0

    def __init__(self, settings: recipe.Denoise, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        self.start = start_of(model, settings.kind)
        check_end(tokenizer)
        if tokenizer.mask is None:
            raise ConfigError("the tokenizer has no mask token: name one (mask), such as <mask>")
        self.mask = tokenizer.mask

    def sample(self, text: str, pieces: Pieces, part: range) -> Sample:
        """ids and, where they are shuffled, where in them sentences begin."""
        sample = super().sample(text, pieces, part)
        if self.settings.shuffle:
            begins = [place - part.start for place in sentences.starts(text, pieces) if part.start < place < part.stop]
            sample["begins"] = np.array([0, *begins], np.int32)
        return sample

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        sources = [self.framed(self._damaged(one, draw)) for one in samples]
        return forced(sources, [self.ended(one["ids"]) for one in samples], self.start)

    def _damaged(self, sample: Sample, draw: np.random.Generator) -> Ids:
        said, ids = self.settings, sample["ids"]
        if said.shuffle:
            ids = shuffled(ids, sample["begins"], draw)
        ids = infilled(ids, said.rate, said.mean, self.mask, draw)
        if said.delete:
            ids = deleted(ids, said.delete, draw)
        return rotated(ids, draw) if draw.random() < said.rotate else ids

    def size(self, sample: Sample) -> int:
        """Source and target together, at most."""
        return 2 * (len(sample["ids"]) + self.frame.added) + len(self.closing)
