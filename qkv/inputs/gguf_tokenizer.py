"""The tokenizer in a GGUF file's metadata: a vocabulary, merges or scores, and the name of a way to cut text.

Keys: ggml's `docs/gguf.md`. What they mean where that is silent, and the defaults: llama.cpp's `src/llama-vocab.cpp`.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from qkv.errors import TokenizerError
from qkv.inputs.backend import BYTE_SYMBOLS, native
from qkv.inputs.regexes import GGUF_PRE, GGUF_WHOLE_WORDS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # tokenizer.ggml.token_type
_SPACE = "▁"
_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")
T = TypeVar("T")


def build(metadata: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of `Tokenizer` that the metadata gives. Raises TokenizerError naming the key."""
    kind = _get(metadata, "model", str)
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(
            f"tokenizer.ggml.model is {kind!r}; known are 'gpt2' (byte-level BPE) and 'llama' (SentencePiece)"
        )
    tokens = _list(metadata, "tokens", str)
    types = _list(metadata, "token_type", int, len(tokens), [_NORMAL] * len(tokens))
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        id, token = next((i, t) for i, t in enumerate(tokens) if vocab[t] != i)
        raise TokenizerError(f"tokenizer.ggml.tokens: {token!r} has the ids {id} and {vocab[token]}")
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}
    ids = {
        role: _token_id(metadata, role, len(tokens), defaults.get(role))
        for role in ("bos", "eos", "eot", "eom", "unknown", "padding")
    }
    with native("the tokenizer in the GGUF metadata"):
        make = _byte_level if kind == "gpt2" else _sentencepiece
        raw = make(metadata, tokens, types, vocab, ids["unknown"])
        raw.add_special_tokens(_added(tokens, types, (_CONTROL, _UNKNOWN), special=True))
        raw.add_tokens(_added(tokens, types, (_USER_DEFINED,), special=False))
        raw.post_processor = _post_processor(metadata, kind, tokens, ids)
    return {
        "backend": raw,
        "size": len(tokens),
        "bos": ids["bos"],
        "eos": [ids[role] for role in ("eos", "eot", "eom") if ids[role] is not None],
        "unk": ids["unknown"],
        "pad": ids["padding"],
        "chat_template": _templates(metadata),
    }


def _byte_level(
    metadata: Mapping[str, object],
    tokens: Sequence[str],
    types: Sequence[int],
    vocab: dict[str, int],
    unknown: int | None,
) -> Tokenizer:
    if "tokenizer.ggml.pre" not in metadata:
        warnings.warn("the GGUF file names no tokenizer.ggml.pre: its text is cut as GPT-2's", stacklevel=4)
    pre = _get(metadata, "pre", str, "default")
    if pre not in GGUF_PRE:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}; known are {', '.join(sorted(GGUF_PRE))}")
    merges: list[Any] = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str)]
    for at, merge in enumerate(merges if set(map(len, merges)) - {2} else ()):
        if len(merge) != 2:
            raise TokenizerError(
                f"tokenizer.ggml.merges[{at}] is {' '.join(merge)!r}, not two tokens and a space between"
            )
    symbols = frozenset(BYTE_SYMBOLS.values())
    for id, token in enumerate(() if symbols.issuperset("".join(tokens)) else tokens):
        if types[id] == _NORMAL and not symbols.issuperset(token):  # some writers spell tokens as text
            spelled = "".join(BYTE_SYMBOLS[byte] for byte in token.encode())
            if spelled not in vocab:
                vocab[spelled] = vocab.pop(token)
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in GGUF_WHOLE_WORDS))
    cuts = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in GGUF_PRE[pre]]
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    return raw


def _sentencepiece(
    metadata: Mapping[str, object],
    tokens: Sequence[str],
    types: Sequence[int],
    vocab: dict[str, int],
    unknown: int | None,
) -> Tokenizer:
    """BPE by score over characters, `▁` for a space, bytes for what has no token.

    The space before a text's first word is put there as in SentencePiece, llama.cpp and the tokenizer.json of Llama 2
    and Mistral: also where the text begins with a space, and after each added token. transformers' GGUF reader
    (5.x) adds it to neither.
    """
    gemma = metadata.get("general.architecture") in _GEMMA
    if gemma:  # its runs of spaces are written as such; its merges follow the order of ids (so transformers)
        vocab = {token if token.strip(" ") else _SPACE * len(token): id for token, id in vocab.items()}
        scores: Sequence[float] = range(0, -len(tokens), -1)
    else:
        scores = _list(metadata, "scores", float, len(tokens))
    mergeable = {token: id for token, id in vocab.items() if types[id] in (_NORMAL, _USER_DEFINED, _UNUSED)}
    raw = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(mergeable, scores),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    to_space: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    from_space: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if _get(metadata, "add_space_prefix", bool, not gemma):
        from_space.insert(0, normalizers.Prepend(_SPACE))
        to_space.append(decoders.Strip(" ", 1, 0))
    raw.normalizer, raw.decoder = normalizers.Sequence(from_space), decoders.Sequence(to_space)
    return raw


def _merges(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs that make a token, best token first (where one has several, as transformers orders them)."""
    found = []
    for token, id in vocab.items():
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(scores[id], len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _added(tokens: Sequence[str], types: Sequence[int], kinds: Sequence[int], special: bool) -> list[AddedToken]:
    return [
        AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in kinds and token.strip(" ")
    ]


def _post_processor(
    metadata: Mapping[str, object], kind: str, tokens: Sequence[str], ids: Mapping[str, int | None]
) -> processors.PostProcessor:
    whole_words = metadata.get("tokenizer.ggml.pre") in GGUF_WHOLE_WORDS and ids["bos"] is not None
    ends: list[tuple[str, int] | None] = []
    for role, usual in (("bos", kind == "llama" or whole_words), ("eos", False)):
        id = ids[role]
        wanted = _get(metadata, f"add_{role}_token", bool, usual)
        if wanted and id is None:
            raise TokenizerError(f"tokenizer.ggml.add_{role}_token is true, but there is no {role}_token_id")
        ends.append((tokens[id], id) if wanted and id is not None else None)
    return _frame(*ends)


def _frame(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.PostProcessor:
    """The post-processor that puts BOS before and EOS after a text, where given."""

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        parts = [("SpecialToken", bos[0] if bos else None), ("Sequence", sequence), ("SpecialToken", eos and eos[0])]
        return [{part: {"id": id, "type_id": kind}} for part, id in parts if id]

    state = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {t: {"id": t, "ids": [id], "tokens": [t]} for t, id in filter(None, (bos, eos))},
    }
    processor = processors.TemplateProcessing("$A", "$A $B", [])
    processor.__setstate__(json.dumps(state).encode())  # its own syntax can't hold every token's name
    return processor


def _templates(metadata: Mapping[str, object]) -> dict[str, str]:
    key = "tokenizer.chat_template"
    found = {"default": metadata[key]} if key in metadata else {}
    found |= {name.removeprefix(f"{key}."): value for name, value in metadata.items() if name.startswith(f"{key}.")}
    for name, template in found.items():
        if not isinstance(template, str):
            raise TokenizerError(f"{key} ({name}) is not a string")
    return {name: str(template) for name, template in found.items()}


def _token_id(metadata: Mapping[str, object], role: str, count: int, default: int | None) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    id = metadata.get(key, default if default is not None and default < count else None)
    if id is not None and (isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < count):
        raise TokenizerError(f"{key} is {id!r}; the file has {count:,} tokens")
    return id


def _get(metadata: Mapping[str, object], name: str, kind: type[T], default: T | None = None) -> T:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, kind):
        raise TokenizerError(
            f"tokenizer.ggml.{name} is {'missing' if value is None else repr(value)[:80]}, not a {kind.__name__}"
        )
    return value


def _list(
    metadata: Mapping[str, object], name: str, kind: type[T], count: int | None = None, default: list[T] | None = None
) -> list[T]:
    values = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(values, list) or not set(map(type, values)) <= {kind, *((int,) if kind is float else ())}:
        problem = "missing" if values is None else f"not a list of {kind.__name__}"
        raise TokenizerError(f"tokenizer.ggml.{name} is {problem}")
    if count is not None and len(values) != count:
        raise TokenizerError(f"tokenizer.ggml.{name} has {len(values):,} entries for {count:,} tokens")
    return values
