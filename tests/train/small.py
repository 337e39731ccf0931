"""Tokenizers of 97 words, as many as the families' tiny models know, and batches as transformers reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

from qkv.inputs.text import Tokenizer
from qkv.nn.head import IGNORED

SIZE = 97


def worded(specials: Mapping[str, str], single: str = "$A", pair: str | None = None, *more: str) -> Tokenizer:
    """Special tokens by role with the first ids, then words w3, w4, …, whose numbers are their ids, and `more` at the
    end. `single` and `pair`: what is put around texts."""
    names = dict.fromkeys(specials.values())
    words = {name: i for i, name in enumerate(names)}
    words |= {f"w{i}": i for i in range(len(names), SIZE - len(more))}
    words |= {name: SIZE - len(more) + i for i, name in enumerate(more)}
    raw = tokenizers.Tokenizer(models.WordLevel(words, "[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    raw.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, i) for name, i in words.items() if name in names]
    )
    return Tokenizer(raw, **dict(specials))


def bert() -> Tokenizer:
    """[CLS] a [SEP] b [SEP]."""
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return worded(names, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def t5(sentinels: int = 20) -> Tokenizer:
    """a </s>, and <extra_id_0> the last of all ids."""
    extra = [f"<extra_id_{i}>" for i in reversed(range(sentinels))]
    return worded({"pad": "<pad>", "eos": "</s>", "unk": "[UNK]"}, "$A </s>", None, *extra)


def bart() -> Tokenizer:
    """<s> a </s>."""
    names = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "[UNK]", "mask": "<mask>"}
    return worded(names, "<s> $A </s>")


def gpt() -> Tokenizer:
    """Nothing around a text; its end has a name."""
    return worded({"eos": "<end>", "unk": "[UNK]"})


def text(*numbers: int) -> str:
    """The words of these ids."""
    return " ".join(f"w{i}" for i in numbers)


def texts(*lengths: int) -> list[str]:
    """One of each length, no two alike."""
    return [text(*(10 + (7 * i * i + 3 * n + i) % 60 for i in range(n))) for n in lengths]


def padded(given: Sequence[Tensor], value: int = 0) -> Tensor:
    """Sequences as transformers reads them [B, L]."""
    return torch.nn.utils.rnn.pad_sequence(list(given), batch_first=True, padding_value=value)


def grid(labels: Tensor, like: Sequence[Tensor]) -> Tensor:
    """Labels of a stream as transformers takes them [B, L]."""
    return padded(labels.split([len(row) for row in like]), IGNORED)


def theirs(model: Any, **given: Any) -> Tensor:
    """transformers' own loss, in evaluation."""
    with torch.no_grad():
        return model(**given).loss  # type: ignore[no-any-return]
