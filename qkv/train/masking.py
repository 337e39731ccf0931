"""Masked language models, with or without next-sentence prediction (BERT, arXiv 1810.04805, §3.1 and A.1)."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.inputs.encoded import Frame, Pieces
from qkv.inputs.text import Tokenizer
from qkv.nn.head import IGNORED, Heads
from qkv.nn.stack import Transformer
from qkv.train import loss, recipe, sentences
from qkv.train.causal import rows
from qkv.train.framed import pieces_of, text_of
from qkv.train.lengths import Lengths, most
from qkv.train.objective import Feed, Objective, Record, Sample, objective

Part = tuple[NDArray[np.int32], NDArray[np.int32]]  # a text's ids, and the number of each one's word
NONE = -1  # the word of a special token


class Noise:
    """Which tokens are guessed, and what the model reads in their places."""

    def __init__(self, settings: recipe.Masked, tokenizer: Tokenizer) -> None:
        """ConfigError: the tokenizer has no mask token."""
        if tokenizer.mask is None:
            raise ConfigError("the tokenizer has no mask token: name one (mask), such as [MASK]")
        self.settings, self.mask = settings, tokenizer.mask
        special = set(tokenizer.specials.values())
        self.plain = np.array([id for id in range(tokenizer.vocab_size) if id not in special], np.int32)

    def __call__(
        self, ids: NDArray[np.int32], words: NDArray[np.int32], draw: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """ids, and the number of each token's word → what is read, and labels."""
        if not self.settings.dynamic:  # the text itself says what becomes of it
            draw = np.random.default_rng([zlib.crc32(ids.tobytes()), len(ids)])
        chosen = self.chosen(words, draw)
        labels = np.full(len(ids), IGNORED, np.int64)
        labels[chosen] = ids[chosen]
        read, fate = ids.copy(), draw.random(len(chosen))
        read[chosen[fate < self.settings.mask]] = self.mask
        other = chosen[(fate >= self.settings.mask) & (fate < self.settings.mask + self.settings.random)]
        read[other] = draw.choice(self.plain, len(other))
        return read, labels

    def chosen(self, words: NDArray[np.int32], draw: np.random.Generator) -> NDArray[np.int64]:
        """The places of `rate` of the tokens, rounded up or down at random; at least one. Whole words are taken in a
        random order if they fit into that (so BERT's create_pretraining_data.py); if none does, the first."""
        places = draw.permutation(np.flatnonzero(words != NONE))
        count = max(1, int(len(places) * self.settings.rate + draw.random()))
        if not self.settings.whole_words:
            return places[:count]
        taken: list[int] = []
        order = list(dict.fromkeys(words[places].tolist()))
        for word in order:
            own = np.flatnonzero(words == word)
            if len(taken) + len(own) <= count:
                taken.extend(own.tolist())
            if len(taken) == count:
                break
        return np.array(taken) if taken else np.flatnonzero(words == order[0])


@objective(recipe.Masked)
class Masked(Objective):
    """Samples hold texts without special tokens: "ids" and, for whole words, the number of each one's word. For
    next-sentence prediction also "cuts", places where a second part may begin, and which text it is of ("text").

    A text is cut at one of its sentences, drawn anew each time (whether masks are dynamic or not); for half of them the
    second part is then another's of the same batch, which so needs two texts at least to teach this. The loss of that
    guess counts for a sequence as much as the mean of its masked tokens', as in BERT where sequences are of one length;
    so the sum over a batch is that over its parts."""

    fields = ("text",)

    def __init__(self, settings: recipe.Masked, model: spec.Model, tokenizer: Tokenizer, length: int | None) -> None:
        super().__init__(settings, model, tokenizer, length)
        kinds = model.head.heads if isinstance(model.head, spec.Heads) else (model.head,)
        self.head = _only(kinds, spec.MaskedLM, settings.kind, "say model.new_head = 'masked'")
        self.noise = Noise(settings, tokenizer)
        self.frame = tokenizer.frame(2 if settings.next_sentence else 1)
        self.follows = 0
        segments, known = max(slot.segment for slot in self.frame.slots), model.stacks[0].embed.segments
        if 0 < known <= segments:
            raise ConfigError(f"the tokenizer marks tokens as of segment {segments}, and this model knows {known}")
        if settings.next_sentence:
            self.follows = _only(kinds, spec.Classify, settings.kind, "next_sentence takes Heads((MaskedLM, Classify))")
            if len(kinds[self.follows].labels) != 2:  # type: ignore[attr-defined]
                raise ConfigError("next_sentence needs a Classify head of two labels: it follows, it doesn't")
        self.lengths = Lengths(self, settings.on_long, most(model, length), least=2 if settings.next_sentence else 1)

    def encode(self, record: Record) -> list[Sample]:
        """InputError: no text, one too long or, for next-sentence prediction, too short to be cut in two."""
        text = text_of(record, "text")
        pieces = pieces_of(self.tokenizer, [text])[0]
        if self.settings.next_sentence and len(pieces) < 2:
            raise InputError("the text has one token: it can't be cut in two")
        begins = sentences.starts(text, pieces) if self.settings.next_sentence else []
        return [self._sample(pieces, part, begins, text) for part in self.lengths.ranges(len(pieces), self.frame.added)]

    def _sample(self, pieces: Pieces, part: range, begins: list[int], text: str) -> Sample:
        own = pieces[part.start : part.stop]
        sample = {"ids": np.array(own.ids, np.int32)}
        if self.settings.whole_words:
            sample["words"] = np.array(own.words, np.int32)
        if self.settings.next_sentence:
            cuts = [place - part.start for place in begins if part.start < place < part.stop]
            sample["cuts"] = np.array(cuts or [_middle(own)], np.int32)
            sample["text"] = np.array([zlib.crc32(text.encode()) >> 1], np.int32)
        return sample

    def size(self, sample: Sample) -> int:
        """With the special tokens."""
        return len(sample["ids"]) + self.frame.added

    def collate(self, samples: Sequence[Sample], draw: np.random.Generator) -> Feed:
        parts, second = [[self._words(one)] for one in samples], np.zeros(0, np.int64)
        if self.settings.next_sentence:
            parts, second = self._pairs(samples, draw)
        framed = [_framed(self.frame, own) for own in parts]
        noised = [self.noise(ids, words, draw) for ids, words, _ in framed]
        labels = np.concatenate([own for _, own in noised])
        counts = [int((own != IGNORED).sum()) for _, own in noised]
        given = tuple(torch.from_numpy(x) for x in (labels, second, np.array(counts, np.float32)))
        feed = Feed(rows([ids for ids, _ in noised]), given[0], sum(counts), len(labels))
        if self.settings.next_sentence:
            feed.labels = given
        if self.spec.stacks[0].embed.segments:
            feed.segments = rows([segments for *_, segments in framed])
        return feed

    def _words(self, sample: Sample) -> Part:
        """A text's ids, and the word of each; where no whole words are asked for, each token is one."""
        ids = sample["ids"]
        return ids, sample["words"] if self.settings.whole_words else np.arange(len(ids), dtype=np.int32)

    def _pairs(
        self, samples: Sequence[Sample], draw: np.random.Generator
    ) -> tuple[list[list[Part]], NDArray[np.int64]]:
        """Each text in two parts, or with another's second part; and whether it is another's."""
        halves = [self._cut(one, int(draw.choice(one["cuts"]))) for one in samples]
        texts = np.array([int(one["text"][0]) for one in samples])
        second, pairs = draw.random(len(samples)) < 0.5, []
        for i, (first, own) in enumerate(halves):
            others = np.flatnonzero(texts != texts[i])
            second[i] &= len(others) > 0
            after = halves[int(draw.choice(others))][1] if second[i] else own
            pairs.append([first, self._room(first, after)])
        return pairs, second.astype(np.int64)

    def _cut(self, sample: Sample, cut: int) -> tuple[Part, Part]:
        ids, words = self._words(sample)
        return (ids[:cut], words[:cut]), (ids[cut:], words[cut:])

    def _room(self, first: Part, second: Part) -> Part:
        """As much of the second as fits beside the first."""
        size = self.lengths.limit.size
        room = None if size is None else size - self.frame.added - len(first[0])
        return second[0][:room], second[1][:room]

    def loss(self, model: Transformer, feed: Feed) -> Tensor:
        stream, batch = model.batch(feed.ids, segments=feed.segments)
        states = model.states(stream, batch)
        heads: Sequence[Any] = list(model.head.each) if isinstance(model.head, Heads) else [model.head]
        masked, table = heads[self.head], model.table
        if not self.settings.next_sentence:
            return loss.of_head(masked, states, table, feed.labels, self.settings.smoothing)
        labels, second, counts = (x.to(states.device) for x in feed.labels)
        guesses = heads[self.follows](states, batch, table).float()
        each = F.cross_entropy(guesses, second, reduction="none")
        return loss.of_head(masked, states, table, labels, self.settings.smoothing) + torch.dot(each, counts)


def _only(kinds: Sequence[spec.Head], kind: type[spec.Head], name: str, way: str) -> int:
    """Which of the heads is of this kind. ConfigError: none."""
    found = [i for i, head in enumerate(kinds) if isinstance(head, kind)]
    if not found:
        has = ", ".join(type(head).__name__ for head in kinds)
        raise ConfigError(f"the objective {name!r} trains a {kind.__name__} head, and the model has {has}: {way}")
    return found[0]


def _middle(pieces: Pieces) -> int:
    """The word's beginning that is nearest to the middle, or the middle of a text of one word."""
    middle = len(pieces) // 2
    begins = [i for i in range(1, len(pieces)) if pieces.words[i] != pieces.words[i - 1]]
    return min(begins, key=lambda place: abs(place - middle), default=middle)


def _framed(frame: Frame, parts: Sequence[Part]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """ids, words and segments of one text or two among the frame's special tokens."""
    ids, words, segments = [], [], []
    after = 0  # the words of each text get numbers of their own
    for slot in frame.slots:
        special = np.array([slot.id], np.int32), np.array([NONE - after], np.int32)
        own_ids, own_words = special if slot.part is None else parts[slot.part]
        ids.append(own_ids)
        words.append(own_words + np.int32(after))
        segments.append(np.full(len(own_ids), slot.segment, np.int32))
        after = max([after, *(words[-1] + 1).tolist()])
    return np.concatenate(ids), np.concatenate(words), np.concatenate(segments)
