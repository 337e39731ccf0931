"""The `tokenizers` library behind qkv's rules: no special token from plain text, no character dropped, no Rust panic.

`Backend` runs in this process. `Isolated` runs the parts of a file that could take forever (its regular expressions,
for one) in a worker that can be killed, and looks the same from outside.
"""

import copy
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import tokenizers
from tokenizers import Encoding, models

from qkv.errors import InputError, QkvError, TokenizerError
from qkv.inputs.encoded import Pieces, frame
from qkv.inputs.worker import Worker, WorkerError, serve

_MEMORY = 2 * 2**30  # bytes of address space for a worker that holds one tokenizer
_BASE_SECONDS = 0.9
_CHARACTERS_A_SECOND = 200_000  # a fifth of what a plain tokenizer does
_LOAD_SECONDS = 30.0


@contextmanager
def native(what: str) -> Iterator[None]:
    """Turn what the Rust library raises into TokenizerError. A panic of it is a BaseException, not an Exception."""
    try:
        yield
    except QkvError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {error}") from error


class Backend:
    """A `tokenizers.Tokenizer`, which it takes over: no truncation, no padding, no special token read from text.

    `frame` and `pair_frame` are what its post-processor puts around a text, and around two."""

    def __init__(self, raw: tokenizers.Tokenizer) -> None:
        raw.no_truncation()
        raw.no_padding()
        raw.encode_special_tokens = True
        self.raw = raw
        self._lock = threading.Lock()  # the pre-tokenizer, which `middle` switches, is state of the object
        self._start, self._middle = raw.pre_tokenizer, _without_first_prefix(raw)
        with native("the tokenizer"):
            unknown = _unknown_id(raw)
            self.frame, self.pair_frame = frame(raw, 1), frame(raw, 2)
        special = {token.content: id for id, token in raw.get_added_tokens_decoder().items() if token.special}
        # A token of one character may be that character's only spelling (CLIP's padding is "!").
        self._forbidden = frozenset(id for content, id in special.items() if len(content) > 1 and id != unknown)
        self._special_text = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self._missing_bytes = _missing_bytes(raw)
        self._may_drop = self._missing_bytes is None and _drops_unknown(raw)

    def encode(self, texts: Sequence[str], *, add: bool = False, middle: bool = False) -> list[list[int]]:
        """The ids of each text, which is plain text to its last character.

        `add` puts the post-processor's tokens (BOS, [CLS] …) around each. `middle` encodes as if other text came
        before: without the space that SentencePiece's kind puts before the first word.
        """
        found = [[id for _, part in parts for id in part.ids] for parts in self._parts(texts, middle)]
        return [self.frame.ids(ids) for ids in found] if add else found

    def pieces(self, texts: Sequence[str], *, middle: bool = False) -> list[Pieces]:
        """The same tokens, each with the characters and the word that it comes from."""
        return [Pieces.of(parts) for parts in self._parts(texts, middle)]

    def json(self) -> str:
        """What goes into tokenizer.json."""
        with native("the tokenizer can't be written as JSON"), self._lock:
            return str(self.raw.to_str(pretty=True))

    def _parts(self, texts: Sequence[str], middle: bool) -> list[list[tuple[int, Encoding]]]:
        """Each text as its parts (mostly one): where it begins, and its tokens."""
        if set(map(type, texts)) - {str}:  # the library would take a pair of texts for one input
            for text in texts:
                check_text(text)
        with native("the tokenizer can't encode this text"), self._lock:
            return [self._plain(text, found) for text, found in zip(texts, self._run(texts, middle), strict=True)]

    def _run(self, texts: Sequence[str], middle: bool) -> list[Encoding]:
        self.raw.pre_tokenizer = self._middle if middle else self._start
        try:
            if len(texts) == 1:
                return [self.raw.encode(texts[0], add_special_tokens=False)]
            return list(self.raw.encode_batch(list(texts), add_special_tokens=False))
        except Exception as error:
            for text in texts:
                check_text(text)
            self._name_unknown(texts, error)
            raise
        finally:
            self.raw.pre_tokenizer = self._start

    def _plain(self, text: str, encoding: Encoding) -> list[tuple[int, Encoding]]:
        """Unigram and word-level models know their special tokens as words: cut such words in two."""
        self._check_dropped(text, encoding)
        if self._forbidden.isdisjoint(encoding.ids):
            return [(0, encoding)]
        cuts = [0, *(match.start() + 1 for match in self._special_text.finditer(text)), len(text)]
        places = [(a, b) for a, b in pairwise(cuts) if a < b]
        texts = [text[a:b] for a, b in places]
        parts = [*self._run(texts[:1], False), *self._run(texts[1:], True)]
        for id in self._forbidden.intersection(id for part in parts for id in part.ids):
            raise TokenizerError(
                f"this tokenizer has no plain spelling of its special token {self.raw.id_to_token(id)!r}; "
                "take it out of the text"
            )
        return [(at, part) for (at, _), part in zip(places, parts, strict=True)]

    def _check_dropped(self, text: str, encoding: Encoding) -> None:
        if self._missing_bytes and not self._missing_bytes.isdisjoint(text.encode()):
            at = next(i for i, c in enumerate(text) if not self._missing_bytes.isdisjoint(c.encode()))
            raise _unknown_text(text[at], at)
        if self._may_drop:
            covered = bytearray(len(text))
            for start, end in encoding.offsets:
                covered[start:end] = b"\1" * (end - start)
            for at, character in enumerate(text):
                if not covered[at] and not character.isspace():
                    raise _unknown_text(character, at)

    def _name_unknown(self, texts: Sequence[str], error: Exception) -> None:
        if "[UNK]" not in str(error):
            return
        for text in texts:
            normal = self.raw.normalizer.normalize_str(text) if self.raw.normalizer else text
            pieces = self._start.pre_tokenize_str(normal) if self._start else [(normal, (0, len(normal)))]
            for piece, (at, _) in pieces:
                if self.raw.token_to_id(piece) is None:
                    raise _unknown_text(piece, at) from error


class Isolated(Backend):
    """A tokenizer whose text handling runs in a worker process, from the first text on, under time and memory limits.

    `source` is the whole tokenizer.json; `raw` has its vocabulary and decoder, and neither normalizer nor
    pre-tokenizer; `reasons` says what in the file isn't known to be harmless.
    """

    def __init__(self, source: str, raw: tokenizers.Tokenizer, reasons: Sequence[str]) -> None:
        super().__init__(raw)
        self._source, self._reasons = source, reasons
        self._worker = Worker("qkv.inputs.backend", {"tokenizer": source}, _LOAD_SECONDS)

    def encode(self, texts: Sequence[str], *, add: bool = False, middle: bool = False) -> list[list[int]]:
        ids: list[list[int]] = self._call(texts, do="encode", add=add, middle=middle)
        return ids

    def pieces(self, texts: Sequence[str], *, middle: bool = False) -> list[Pieces]:
        rows = self._call(texts, do="pieces", middle=middle)
        return [Pieces(ids, [(start, end) for start, end in offsets], words) for ids, offsets, words in rows]

    def _call(self, texts: Sequence[str], **request: object) -> list[Any]:
        for text in texts:
            check_text(text)
        if not texts:
            return []
        seconds = _BASE_SECONDS + sum(map(len, texts)) / _CHARACTERS_A_SECOND
        try:
            reply = self._worker.call({"texts": list(texts), **request}, seconds)
        except WorkerError as error:
            raise TokenizerError(
                f"the tokenizer was stopped: {error}. What qkv doesn't know to be harmless in it: "
                f"{'; '.join(self._reasons)}. If you trust the file, load it with trust=True to run it without limits"
            ) from None
        if "failed" in reply:
            raise TokenizerError(reply["failed"])
        done: list[Any] = reply["done"]
        return done

    def json(self) -> str:
        return self._source


def check_text(text: object) -> None:
    """Raise InputError where it isn't a string, or one that UTF-8 can't hold."""
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate, U+{ord(text[error.start]):04X}, at character {error.start}: it isn't "
            "valid Unicode. Decode it from its bytes again, or drop such characters"
        ) from None


def _unknown_text(piece: str, at: int) -> TokenizerError:
    return TokenizerError(
        f"the vocabulary has no {piece!r} (character {at} of the text) and the tokenizer has no unknown token for it"
    )


def _unknown_id(raw: tokenizers.Tokenizer) -> int | None:
    if isinstance(raw.model, models.Unigram):  # it doesn't tell; a noncharacter finds out
        try:
            return next((token.id for token in raw.model.tokenize("\U0010ffff")), None)
        except Exception:  # "`unk_id` is missing"
            return None
    unknown = raw.model.unk_token
    return None if unknown is None else raw.token_to_id(unknown)


def _without_first_prefix(raw: tokenizers.Tokenizer) -> Any:
    """The pre-tokenizer as it acts past the start of a text."""
    if raw.pre_tokenizer is None:
        return None
    state = raw.pre_tokenizer.__getstate__().decode()
    changed = state.replace('"prepend_scheme":"first"', '"prepend_scheme":"never"')
    if changed == state:
        return raw.pre_tokenizer
    middle = copy.deepcopy(raw.pre_tokenizer)
    middle.__setstate__(changed.encode())
    return middle


def _missing_bytes(raw: tokenizers.Tokenizer) -> frozenset[int] | None:
    """The bytes that a byte-level BPE without an unknown token drops, or None where it isn't one."""
    if not isinstance(raw.model, models.BPE) or raw.model.unk_token is not None:
        return None
    parts = [part.__getstate__() for part in (raw.normalizer, raw.pre_tokenizer) if part is not None]
    if not any(b'"ByteLevel"' in part for part in parts):
        return None
    known = {byte for byte, symbol in BYTE_SYMBOLS.items() if raw.token_to_id(symbol) is not None}
    return frozenset(range(256)) - known


def _drops_unknown(raw: tokenizers.Tokenizer) -> bool:
    if not isinstance(raw.model, models.BPE) or raw.model.unk_token is not None:
        return False
    has_bytes = all(raw.token_to_id(f"<0x{byte:02X}>") is not None for byte in range(256))
    return not (raw.model.byte_fallback and has_bytes)


def _byte_symbols() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the others for U+0100 and on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


BYTE_SYMBOLS = _byte_symbols()


def main() -> None:
    """The worker of `Isolated`: a tokenizer.json first, then texts."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # each thread's stack and heap count against the memory limit
    loaded: list[Backend] = []
    failure = ""

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal failure
        try:
            if "tokenizer" in request:
                with native("tokenizer.json"):
                    loaded.append(Backend(tokenizers.Tokenizer.from_str(request["tokenizer"])))
            elif not loaded:
                return {"failed": failure}
            elif request.pop("do") == "encode":
                return {"done": loaded[0].encode(**request)}
            else:
                return {"done": [(p.ids, p.offsets, p.words) for p in loaded[0].pieces(**request)]}
        except QkvError as error:
            failure = str(error)
            return {"failed": failure}
        return {}

    serve(handle, _MEMORY)
