"""Train a tokenizer on texts: byte-level BPE, WordPiece, Unigram, and the two that need no algorithm.

Byte-pair encoding of bytes: Sennrich et al. 2016 (arXiv:1508.07909), Radford et al. 2019. WordPiece: Schuster and
Nakajima 2012. Unigram: Kudo 2018 (arXiv:1804.10959).
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qkv.errors import InputError, NotFound
from qkv.inputs.backend import check_text, native
from qkv.inputs.regexes import ANY_CHARACTER
from qkv.inputs.text import Tokenizer

Kind = Literal["bpe", "wordpiece", "unigram", "char", "word"]
_SPECIAL: Mapping[str, Mapping[str, str]] = {
    "bpe": {"eos": "<|endoftext|>"},
    "wordpiece": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "unigram": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "char": {},
    "word": {},
}
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


def train_tokenizer(
    texts: Iterable[str | Path],
    kind: Kind = "bpe",
    vocab_size: int | None = None,
    *,
    special_tokens: Mapping[str, str] | Sequence[str] | None = None,
    lowercase: bool = False,
    chat_template: str | None = None,
) -> Tokenizer:
    """Train a tokenizer of `vocab_size` tokens (fewer where the texts don't hold as many, with a warning).

    `texts` are strings, or paths of UTF-8 files. The kinds:
    - "bpe": byte-level; takes any text, and gives it back exactly;
    - "wordpiece": BERT's: words cut at punctuation, [CLS] and [SEP] around, what it can't spell is [UNK];
    - "unigram": SentencePiece's other kind, with `▁` for spaces;
    - "char", "word": each character, or each word and run of punctuation, is a token; no `vocab_size` means all.

    `special_tokens` get the first ids: `{"eos": "</s>", …}` by role (bos, eos, pad, unk, sep, cls, mask), or a list of
    tokens without one; none given means the kind's usual ones. A tokenizer without an "unk" refuses a text with what
    it doesn't know, and says which. The same texts give the same "bpe", "char" and "word" tokenizer each time; the
    library's "wordpiece" and "unigram" may number or weigh tokens otherwise from run to run, so save what you train.
    Progress goes to stderr on a terminal. Raises InputError, NotFound.
    """
    roles, special = _roles(kind, special_tokens)
    if isinstance(texts, (str, Path)):
        raise InputError("texts is a list of texts, or of paths")
    if vocab_size is None and kind not in ("char", "word"):
        raise InputError(f"a {kind} tokenizer needs a vocab_size")
    least = len(special) + (256 if kind == "bpe" else 1)
    if vocab_size is not None and vocab_size < least:
        raise InputError(
            f"vocab_size is {vocab_size}; a {kind} tokenizer has at least {least} tokens with these special ones"
        )
    raw, trainer = _parts(kind, roles, special, vocab_size or sys.maxsize, lowercase)
    found = False

    def feed() -> Iterator[str]:
        nonlocal found
        for text in _read(texts):
            found = found or bool(text)
            yield text

    with native("training the tokenizer failed"):
        raw.train_from_iterator(feed(), trainer)
    if not found:
        raise InputError("the texts are empty: there is nothing to train a tokenizer on")
    got = raw.get_vocab_size()
    if vocab_size is not None and got > vocab_size:
        raise InputError(f"vocab_size is {vocab_size:,}; the characters of these texts alone need {got:,}")
    if vocab_size is not None and got < vocab_size:
        warnings.warn(f"the texts gave {got:,} tokens, of {vocab_size:,} asked for", stacklevel=2)
    if "cls" in roles and "sep" in roles:
        ids = raw.get_vocab()
        raw.post_processor = processors.BertProcessing(*((roles[role], ids[roles[role]]) for role in ("sep", "cls")))
    named: dict[str, Any] = dict(roles)
    return Tokenizer(raw, chat_template=chat_template, **named)


def _roles(kind: str, given: Mapping[str, str] | Sequence[str] | None) -> tuple[dict[str, str], list[str]]:
    if kind not in _SPECIAL:
        raise InputError(f"kind is {kind!r}, none of {', '.join(_SPECIAL)}")
    roles = dict(_SPECIAL[kind] if given is None else given if isinstance(given, Mapping) else {})
    special = list(dict.fromkeys(roles.values() if given is None or isinstance(given, Mapping) else given))
    for token in special:
        check_text(token)
    if unknown := roles.keys() - set(_ROLES):
        raise InputError(f"special_tokens has the role {min(unknown)!r}, none of {', '.join(_ROLES)}")
    if "" in special:
        raise InputError("special_tokens holds an empty token")
    if kind == "wordpiece" and "unk" not in roles:
        raise InputError("a wordpiece tokenizer needs an 'unk' among its special_tokens")
    return roles, special


def _parts(
    kind: str, roles: Mapping[str, str], special: list[str], vocab_size: int, lowercase: bool
) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    """An untrained tokenizer of a kind, and its trainer."""
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": special,
        "show_progress": sys.stderr.isatty(),
    }
    unk = roles.get("unk")
    trainer: trainers.Trainer
    if kind == "bpe":
        raw = tokenizers.Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    elif kind == "wordpiece":
        raw = tokenizers.Tokenizer(models.WordPiece(unk_token=unk))
        raw.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        return raw, trainers.WordPieceTrainer(**options)
    elif kind == "unigram":
        raw = tokenizers.Tokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unk, **options)
    else:
        # "" is no token, so what the vocabulary lacks is an error. The library's default, "<unk>", is one in name only.
        raw = tokenizers.Tokenizer(models.WordLevel(unk_token=unk or ""))
        if kind == "char":
            raw.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
            raw.decoder = decoders.Fuse()
        else:
            raw.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**options)
    if lowercase:
        raw.normalizer = normalizers.Lowercase()
    return raw, trainer


def _read(texts: Iterable[str | Path]) -> Iterator[str]:
    for i, text in enumerate(texts):
        if isinstance(text, Path):
            yield from _lines(text)
            continue
        check_text(text)
        if i == 0 and len(text) < 256 and Path(text).is_file():
            raise InputError(f"the first text, {text!r}, is a file's name: give paths as pathlib.Path")
        yield text


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from file
    except FileNotFoundError:
        raise NotFound(f"{path} is not there") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} isn't UTF-8: {error}") from None
