"""Tiny models and a tokenizer of bytes for this folder's tests."""

import codecs
from collections.abc import Iterable
from functools import cache

import torch

from qkv import spec
from qkv.nn.stack import Transformer

EOS = 256
VOCAB = 257


def model_spec(**changes: object) -> spec.Model:
    """Two layers, grouped heads, rotary positions, unless the changes (of `part`s) say otherwise."""
    attention = {"heads": 4, "kv_heads": 2, "position": spec.Rotary(), **changes.pop("attention", {})}
    block = spec.Block(spec.Attention(**attention), spec.Gated(48, "silu"), spec.RMS())
    stack = spec.Stack((block,), 2, spec.RMS(), changes.pop("embed", spec.Embed()))
    return spec.Model(**{"vocab": VOCAB, "dim": 32, "decoder": stack, "context": 256, **changes})


KINDS = {
    "rotary": {},
    "window": {"attention": {"mask": spec.Window(5)}},
    "alibi": {"attention": {"position": spec.Alibi(), "kv_heads": 4}},
    "learned": {"attention": {"position": None, "kv_heads": 1}, "embed": spec.Embed(spec.Learned(64)), "context": 64},
}


@cache
def tiny(kind: str = "rotary") -> Transformer:
    """A model of random weights, large enough that its greedy texts vary."""
    torch.manual_seed(0)
    model = Transformer(model_spec(**KINDS[kind])).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if "tokens" in name else 0.3)
    return model


class Bytes:
    """A token is a byte of UTF-8, and 256 the end."""

    eos = (EOS,)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < EOS).decode(errors="replace")

    def stream(self, *, context: Iterable[int] = ()) -> "ByteStream":
        return ByteStream()


class ByteStream:
    """Text as soon as its bytes are complete."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self.decoder.decode(bytes([token])) if token < EOS else ""

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


def pair_spec(kind: str, **changes: object) -> spec.Model:
    """An encoder–decoder of two layers each: as T5 (relative, before) or as BART (learned positions, after)."""
    full = spec.Attention(4, 4, mask=spec.Full(), scale=1.0 if kind == "relative" else None)
    causal = spec.Attention(4, 4, scale=full.scale)
    norm, place = (spec.RMS(), "pre") if kind == "relative" else (spec.LayerNorm(), "post")
    embed = spec.Embed() if kind == "relative" else spec.Embed(spec.Learned(24, 2), norm=norm)

    def stack(mixer: spec.Attention, cross: spec.Attention | None) -> spec.Stack:
        bias = spec.RelativeBias(8, 16, both_ways=cross is None) if kind == "relative" else None
        block = spec.Block(mixer, spec.Plain(48, "relu"), norm, place, cross=cross)
        return spec.Stack((block,), 2, norm if kind == "relative" else None, embed, position=bias)

    parts = {
        "vocab": VOCAB,
        "dim": 32,
        "decoder": stack(causal, full),
        "encoder": stack(full, None),
        "start": 0,
        "context": None,
    }
    return spec.Model(**{**parts, **changes})


@cache
def pair(kind: str = "relative") -> Transformer:
    """Such a model of random weights, whose answers differ with what the encoder reads."""
    torch.manual_seed(1)
    model = Transformer(pair_spec(kind)).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if "tokens" in name else 0.3)
    return model
