"""Stand-ins for models: one that computes what a test says, and one that asks transformers."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models
from torch import Tensor, nn

from qkv import spec
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from tests.inputs.samples import CORPUS

WORDS = [
    *CORPUS,
    "Paris is the capital of France, and Berlin that of Germany. Anna Smith lives in New York with Bob.",
    "Who lives in Paris? What is the capital? The answer is unknown, playing played plays unbelievable.",
]


@cache
def wordpiece() -> Tokenizer:
    """BERT's kind: [CLS] a [SEP] b [SEP]. Its vocabulary is spelled out: every character, the beginnings of words and
    what follows them. (The trainer breaks ties differently in each process.)"""
    trained = train_tokenizer(WORDS, "wordpiece", 200)
    specials = [trained.token(id) for id in range(5)]
    raw = tokenizers.Tokenizer.from_str(trained._backend.json())
    words = [word for text in WORDS for word, _ in raw.pre_tokenizer.pre_tokenize_str(text)]
    pieces = {c for word in words for c in word} | {f"##{c}" for word in words for c in word}
    pieces |= {word[:3] for word in words} | {f"##{word[3:5]}" for word in words if len(word) > 3}
    vocab = {token: id for id, token in enumerate([*specials, *sorted(pieces - set(specials))])}
    raw.model = models.WordPiece(vocab, unk_token="[UNK]")
    return Tokenizer(raw, unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")


def theirs(folder: Path, tokenizer: Tokenizer, kind: str, labels: tuple[str, ...] = ("A", "B"), **config: Any) -> Any:
    """A random BERT of transformers with this head, and a pipeline's tokenizer for it."""
    import transformers

    tokenizer.save(folder, segments=True)
    small = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.6,
        **config,
    )
    model = getattr(transformers, f"BertFor{kind}")(small).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def bert(head: spec.Head, vocab: int, *, length: int = 64, segments: int = 2) -> spec.Model:
    """An encoder with learned positions."""
    block = spec.Block(spec.Attention(2, 2, mask=spec.Full()), spec.Plain(32), spec.LayerNorm(), place="post")
    embed = spec.Embed(spec.Learned(length), norm=spec.LayerNorm(), segments=segments)
    return spec.Model(vocab, 16, encoder=spec.Stack((block,), 2, embed=embed), head=head, family="bert")


class Fake(nn.Module):
    """`compute(ids, segments)` → what the head gives for one sequence. `seen` holds what it was given."""

    def __init__(self, model: spec.Model, compute: Callable[[list[int], list[int]], Any]) -> None:
        super().__init__()
        self.spec, self.compute = model, compute
        self.seen: list[tuple[list[int], list[int]]] = []

    def forward(self, ids: Sequence[list[int]], segments: Sequence[list[int]] | None = None) -> Any:
        kinds = segments or [[0] * len(row) for row in ids]
        self.seen += zip(ids, kinds, strict=True)
        rows = [self.compute(*pair) for pair in zip(ids, kinds, strict=True)]
        return tuple(zip(*rows, strict=True)) if isinstance(rows[0], tuple) else rows


def by_id(table: Tensor) -> Callable[[list[int], list[int]], Tensor]:
    """A head whose answer for a token is the table's row of its id."""
    return lambda ids, _: table[torch.tensor(ids)]


def asking(model: Any, *names: str) -> Callable[[list[int], list[int]], Tensor]:
    """What a model of transformers computes: its outputs of these names, stacked behind one another."""

    def compute(ids: list[int], segments: list[int]) -> Tensor:
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([segments]))
        found = [out[name][0] for name in names]
        return found[0] if len(found) == 1 else torch.stack(found, -1)

    return compute
