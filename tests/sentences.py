"""A sentence-transformers folder with a BERT of a few thousand random weights, as that library writes it."""

import string
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors

from qkv.inputs.text import Tokenizer

DIM = 32
POSITIONS = 48
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "quick", "brown", "fox", "query", "##s", "##ing", "naive", ":", "日", "本")
TEXTS = [
    "The quick brown fox",
    "",
    "x",
    "foxes naming 日本 naïve, 😀!",
    "a b c d e",
    "THE QUICK",
    "query: fox",
    "brown" * 6,
]
LONG = " ".join(f"fox{i}" for i in range(40))


def tokenizer() -> Tokenizer:
    """BERT's kind, which spells any word of Latin letters and digits."""
    signs = string.ascii_lowercase + string.digits
    vocab = [*SPECIAL, *WORDS, *signs, *(f"##{sign}" for sign in signs), *",.!?-"]
    raw = tokenizers.Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    return Tokenizer(raw, **names)  # type: ignore[arg-type]


def bert(folder: Path) -> Path:
    """The model and its tokenizer as transformers writes them."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    words = tokenizer()
    config = BertConfig(
        vocab_size=words.vocab_size,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        pad_token_id=0,
    )
    BertModel(config).eval().save_pretrained(folder)
    words.save(folder)
    return folder


def sentence_folder(folder: Path, pooling: str = "mean", normalize: bool = True, **options: Any) -> Path:
    """`options`: of `SentenceTransformer` (prompts, default_prompt_name …), or `max_seq_length`, `do_lower_case`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    own = {name: options.pop(name) for name in ("max_seq_length", "do_lower_case") if name in options}
    modules = [Transformer(str(bert(folder / "bert")), **own), Pooling(DIM, pooling)]
    made = SentenceTransformer(modules=[*modules, *([Normalize()] if normalize else [])], device="cpu", **options)
    made.save(str(folder / "sentence"))
    return folder / "sentence"


def theirs(folder: Path, texts: list[str], **options: Any) -> Any:
    """What sentence-transformers makes of the texts: [texts, dim]."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False, **options)
