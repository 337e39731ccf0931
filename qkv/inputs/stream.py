"""Ids to text, piece by piece: what `decode` makes of all ids at once, in time that doesn't grow with the text.

A tokenizer's decoder is a chain of steps. Here each step takes one token at a time and keeps what it can't give out
yet: the bytes of an unfinished character, a run of byte tokens, a last word's ending.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from qkv.errors import TokenizerError
from qkv.inputs.backend import BYTE_SYMBOLS

_BYTES = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}


class _Step(ABC):
    @abstractmethod
    def feed(self, token: str) -> Iterator[str]: ...

    def finish(self) -> Iterator[str]:
        return iter(())


class _ByteLevel(_Step):
    """Symbols to bytes to UTF-8. A token with a symbol outside the table is itself (an added token)."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: str) -> Iterator[str]:
        try:
            data = bytes(_BYTES[symbol] for symbol in token)
        except KeyError:
            data = token.encode()
        yield self._utf8.decode(data)

    def finish(self) -> Iterator[str]:
        yield self._utf8.decode(b"", final=True)


class _ByteFallback(_Step):
    """A run of `<0xE2>` tokens is valid UTF-8 as a whole, or one U+FFFD a byte: it waits until the run ends."""

    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, token: str) -> Iterator[str]:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                self._run.append(int(token[3:5], 16))
                return
            except ValueError:
                pass
        yield from self.finish()
        yield token

    def finish(self) -> Iterator[str]:
        run, self._run = bytes(self._run), bytearray()
        if run:
            try:
                yield run.decode()
            except UnicodeDecodeError:
                yield from "\ufffd" * len(run)


class _Replace(_Step):
    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content

    def feed(self, token: str) -> Iterator[str]:
        yield token.replace(self._pattern, self._content)


class _Strip(_Step):
    """Up to `start` of a character off the left and `stop` off the right: of each token, or once of all (`fused`)."""

    def __init__(self, content: str, start: int, stop: int, fused: bool) -> None:
        self._content, self._start, self._stop, self._fused = content, start, stop, fused
        self._left = start

    def feed(self, token: str) -> Iterator[str]:
        if not self._fused:
            self._left = self._start
        while self._left and token:
            if token[0] != self._content:
                self._left = 0
            else:
                token, self._left = token[1:], self._left - 1
        for _ in range(self._stop):
            token = token.removesuffix(self._content)
        yield token


class _WordPiece(_Step):
    """A space before each word; with `cleanup`, none before punctuation and contractions."""

    _TIDY = (
        *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
        (" ' ", "'"),
        *((f" {end}", end) for end in ("n't", "'m")),
        (" do not", " don't"),
        *((f" {end}", end) for end in ("'s", "'ve", "'re")),
    )

    def __init__(self, prefix: str, cleanup: bool) -> None:
        self._prefix, self._cleanup, self._first = prefix, cleanup, True

    def feed(self, token: str) -> Iterator[str]:
        if not self._first:
            joined = token.startswith(self._prefix)
            token = token[len(self._prefix) :] if joined else " " + token
        self._first = False
        for pattern, content in self._TIDY if self._cleanup else ():
            token = token.replace(pattern, content)
        yield token


class _Metaspace(_Step):
    """`▁` is a space, and in the first token nothing."""

    def __init__(self, replacement: str, prepend_scheme: str) -> None:
        self._replacement, self._first = replacement, prepend_scheme != "never"

    def feed(self, token: str) -> Iterator[str]:
        yield token.replace(self._replacement, "" if self._first else " ")
        self._first = False


class _WordEnd(_Step):
    """`</w>` is a space, but not in the last token, so one token waits."""

    def __init__(self, suffix: str) -> None:
        self._suffix, self._held = suffix, ""

    def feed(self, token: str) -> Iterator[str]:
        yield self._held.replace(self._suffix, " ")
        self._held = token

    def finish(self) -> Iterator[str]:
        yield self._held.replace(self._suffix, "")
        self._held = ""


class _Words(_Step):
    """No decoder: tokens are words, with a space between."""

    def __init__(self) -> None:
        self._space = ""

    def feed(self, token: str) -> Iterator[str]:
        yield self._space + token
        self._space = " "


def _steps(decoder: dict[str, Any] | None) -> list[_Step]:
    if decoder is None:
        return [_Words()]
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    steps: list[_Step] = []
    fused = False
    for part in parts:
        match part:
            case {"type": "ByteLevel"} if not fused:
                steps.append(_ByteLevel())
                fused = True
            case {"type": "ByteFallback"} if not fused:
                steps.append(_ByteFallback())
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern and (
                not fused or len(pattern) == 1
            ):
                steps.append(_Replace(pattern, content))
            case {"type": "Strip", "content": content, "start": start, "stop": stop} if not fused or stop == 0:
                steps.append(_Strip(content, start, stop, fused))
            case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup} if not fused:
                steps.append(_WordPiece(prefix, cleanup))
            case {"type": "Metaspace", "replacement": replacement, "prepend_scheme": scheme} if not fused:
                steps.append(_Metaspace(replacement, scheme))
            case {"type": "BPEDecoder", "suffix": suffix} if not fused:
                steps.append(_WordEnd(suffix))
            case _:
                raise TokenizerError(
                    f"text can't be streamed through this tokenizer's decoder {part}; decode all at once"
                )
    return steps


class StreamDecoder:
    """`push` ids as they come and print what it returns; `finish` returns the rest. One decoder serves one text.

    All pieces together are `Tokenizer.decode` of all ids, and none but the last has U+FFFD for bytes still to come.
    A push takes time linear in its own ids.
    """

    def __init__(self, decoder: dict[str, Any] | None, token: Callable[[int], str | None]) -> None:
        """`decoder` as in tokenizer.json; `token` gives an id's token, or None for one that isn't text."""
        self._steps, self._token = _steps(decoder), token

    def push(self, ids: int | Iterable[int]) -> str:
        """The text that these ids complete, often none. Raises InputError for an id without a token."""
        tokens = map(self._token, (ids,) if isinstance(ids, int) else ids)
        return "".join(piece for token in tokens if token is not None for piece in self._through(token, 0))

    def finish(self) -> str:
        """The text that was waiting for more."""
        pieces: list[str] = []
        for i, step in enumerate(self._steps):
            for rest in step.finish():
                pieces += self._through(rest, i + 1)
        return "".join(pieces)

    def _through(self, token: str, step: int) -> Iterator[str]:
        if step == len(self._steps):
            yield token
            return
        for piece in self._steps[step].feed(token):
            yield from self._through(piece, step + 1)
