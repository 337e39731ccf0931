"""A tokenizer.json is checked before any of it runs: it comes from whoever uploaded the model.

`check` refuses what no tokenizer has. `reasons` lists what could take forever, or all memory, on some text; with any,
the file's text handling runs in a worker that can be killed (`qkv.inputs.backend.Isolated`).
"""

import base64
import binascii
import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import tokenizers

from qkv.errors import TokenizerError
from qkv.inputs.backend import Backend, Isolated, native
from qkv.inputs.regexes import KNOWN

MAX_BYTES = 128 * 2**20  # the largest known tokenizer.json has some 35 MB
MAX_IDS = 2**22  # the largest known vocabulary has 1.0 M tokens
_MAX_GROWTH = 64  # how many times longer all replacements together may make a text
_MAX_FRAME = 64  # tokens that a post-processor may put around a text
_MAX_PIECE = 512  # characters of a Unigram token: encoding takes time text × longest token
_MAX_WORD = 1024  # characters of a WordPiece word: encoding takes time quadratic in it
_MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")


def load(data: dict[str, Any], where: str, trust: bool) -> Backend:
    """The tokenizer that a checked tokenizer.json describes; `trust` runs all of it here, whatever `reasons` says."""
    why = [] if trust else reasons(data)
    source = json.dumps(data, ensure_ascii=False)
    harmless = json.dumps({**data, "normalizer": None, "pre_tokenizer": None}) if why else source
    with native(where):
        raw = tokenizers.Tokenizer.from_str(harmless)
    for i, token in enumerate(data.get("added_tokens") or ()):
        if raw.token_to_id(token["content"]) != token["id"]:
            _refuse(where, f"added_tokens[{i}].id", f"is {token['id']}, but {token['content']!r} has another id")
    backend = Backend(raw)
    for id in backend.encode([""], add=True)[0]:
        if raw.id_to_token(id) is None:
            _refuse(where, "post_processor", f"adds the id {id}, which no token has")
    return Isolated(source, raw, why) if why else backend


def check(data: dict[str, Any], where: str) -> int:
    """The largest id + 1. Raises TokenizerError naming the field."""
    model = data.get("model")
    if not isinstance(model, dict):
        _refuse(where, "model", "is missing or not an object")
    if model.get("type", "BPE") not in _MODELS:
        _refuse(where, "model.type", f"is {str(model['type'])[:80]!r}, none of {', '.join(_MODELS)}")
    ids = _vocab_ids(model.get("vocab"), where)
    merges = model.get("merges") or []
    if not isinstance(merges, list) or len(merges) > 4 * MAX_IDS:
        _refuse(where, "model.merges", f"is not a list of at most {4 * MAX_IDS:,} pairs")
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        _refuse(where, "added_tokens", "is not a list")
    for i, token in enumerate(added):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            _refuse(where, f"added_tokens[{i}].content", "is missing or no text")
        ids.add(_id(token.get("id"), where, f"added_tokens[{i}].id"))
    if max(ids, default=0) > 2 * len(ids) + 1024:
        _refuse(where, "model.vocab", f"has {len(ids):,} tokens and ids up to {max(ids):,}: most ids have no token")
    _check_decoder(data.get("decoder"), where)
    _check_frame(data.get("post_processor"), where)
    return max(ids, default=-1) + 1


def _refuse(where: str, field: str, problem: str) -> NoReturn:
    raise TokenizerError(f"{where}: {field} {problem}")


def _id(value: object, where: str, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_IDS:
        _refuse(where, field, f"is {str(value)[:80]}; ids are integers from 0 to {MAX_IDS - 1:,}")
    return value


def _vocab_ids(vocab: object, where: str) -> set[int]:
    if isinstance(vocab, list):  # Unigram's: [token, score] each
        if len(vocab) > MAX_IDS:
            _refuse(where, "model.vocab", f"has {len(vocab):,} tokens; the limit is {MAX_IDS:,}")
        for i, entry in enumerate(vocab):
            match entry:
                case [str(), int() | float()]:
                    continue
            _refuse(where, f"model.vocab[{i}]", f"is {str(entry)[:80]}, not a token and a score")
        return set(range(len(vocab)))
    if not isinstance(vocab, dict):
        _refuse(where, "model.vocab", "is missing, or neither an object nor a list")
    owners: dict[int, str] = {}
    for token, value in vocab.items():
        id = _id(value, where, f"model.vocab[{token[:80]!r}]")
        if owners.setdefault(id, token) is not token:
            _refuse(where, "model.vocab", f"gives {owners[id]!r} and {token!r} the same id {id}")
    return set(owners)


def _walk(part: object, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object below a field, with its path."""
    if isinstance(part, dict):
        yield field, part
        for key, inner in part.items():
            yield from _walk(inner, f"{field}.{key}")
    elif isinstance(part, list):
        for i, inner in enumerate(part):
            yield from _walk(inner, f"{field}[{i}]")


def _check_decoder(decoder: object, where: str) -> None:
    for field, part in _walk(decoder, "decoder"):
        if "Regex" in part and part["Regex"] not in KNOWN:
            _refuse(where, f"{field}.Regex", f"is {str(part['Regex'])[:80]!r}: no known decoder needs it")
        if len(str(part.get("content", ""))) > 16:
            _refuse(where, f"{field}.content", "has more than 16 characters")


def _check_frame(processor: object, where: str) -> None:
    for field, part in _walk(processor, "post_processor"):
        for key, inner in part.items():
            if key in ("single", "pair", "ids", "tokens") and isinstance(inner, list) and len(inner) > _MAX_FRAME:
                _refuse(where, f"{field}.{key}", f"has {len(inner):,} parts; the limit is {_MAX_FRAME}")


def reasons(data: dict[str, Any]) -> list[str]:
    """What in a tokenizer.json isn't known to take linear time and memory, each with its field."""
    found = []
    growth = 1.0
    for top in ("normalizer", "pre_tokenizer"):
        for field, part in _walk(data.get(top), top):
            if "Regex" in part and part["Regex"] not in KNOWN:
                found.append(f"{field}.Regex is {str(part['Regex'])[:200]!r}")
            growth *= _growth(part)
    if growth > _MAX_GROWTH:
        found.append(f"normalizer can make a text {growth:,.0f} times longer")
    model = data["model"]
    if isinstance(model["vocab"], list) and max((len(token) for token, _ in model["vocab"]), default=0) > _MAX_PIECE:
        found.append(f"model.vocab has tokens of more than {_MAX_PIECE} characters")
    longest = model.get("max_input_chars_per_word", 0)
    if isinstance(longest, int) and longest > _MAX_WORD:
        found.append(f"model.max_input_chars_per_word is {longest:,}")
    return found


def _growth(part: dict[str, Any]) -> float:
    """How many times longer a component can make a text. Read off its keys: `type` may be left out of them."""
    growth = float(len(str(part.get("prepend", ""))))
    if "pattern" in part and "content" in part:
        pattern = part["pattern"]
        shortest = len(str(pattern.get("String", " "))) if isinstance(pattern, dict) else 1
        growth = max(growth, len(str(part["content"])) / shortest if shortest else math.inf)
    if "precompiled_charsmap" in part:
        growth = max(growth, _charsmap_growth(part["precompiled_charsmap"]))
    return max(1.0, growth)


def _charsmap_growth(charsmap: object) -> float:
    """SentencePiece's map: a 4-byte length, a trie of that length, and replacements that each end in a zero byte."""
    try:
        data = base64.b64decode(str(charsmap), validate=True)
    except (binascii.Error, ValueError):
        return math.inf
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return float(max(map(len, texts.split(b"\0"))))
