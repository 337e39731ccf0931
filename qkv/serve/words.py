"""Each token as text and bytes by itself, as log-probabilities show it."""

import json
from functools import lru_cache

from qkv.errors import InputError
from qkv.inputs.backend import BYTE_SYMBOLS
from qkv.inputs.text import Tokenizer

_BYTES = {symbol: byte for byte, symbol in BYTE_SYMBOLS.items()}
_CACHED = 65_536  # tokens


LEAST = -9999.0  # a log-probability of nothing, which JSON can't hold (and vLLM's word for it)


def finite(logprob: float | None) -> float | None:
    """A log-probability as JSON takes it."""
    return None if logprob is None else max(logprob, LEAST)


class Words:
    """The texts of a tokenizer's tokens. Together they are the text of all ids, but for what a decoder does between
    tokens (WordPiece's spaces) and at a text's start (SentencePiece's)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        decoder = json.dumps(json.loads(tokenizer.to_json()).get("decoder"), ensure_ascii=False)
        self._byte_level = '"ByteLevel"' in decoder
        self._space = "▁" if "▁" in decoder else None
        self._special = frozenset(tokenizer.specials.values())
        self.raw = lru_cache(_CACHED)(self._raw)

    def _raw(self, id: int) -> bytes:
        """A token's bytes, which may be a part of a character's. A row of the embedding without a token has none."""
        try:
            token = self.tokenizer.token(id)
        except InputError:
            return b""
        if id in self._special:
            return token.encode()
        if self._byte_level:
            return bytes(_BYTES[c] for c in token) if all(c in _BYTES for c in token) else token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return (token if self._space is None else token.replace(self._space, " ")).encode()

    def shown(self, id: int) -> bytes:
        """What of it stands in an answer's text: nothing of a special token."""
        return b"" if id in self._special else self.raw(id)

    def text(self, id: int) -> str:
        """A token as text; of a part of a character its bytes, as OpenAI writes them: bytes:\\xe2\\x82."""
        raw = self.raw(id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
