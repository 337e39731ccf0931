"""Models of a few thousand weights."""

from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

import qkv
from qkv import spec
from qkv.families.t5 import FAMILY as T5
from qkv.inputs.text import Tokenizer
from qkv.nn.stack import Transformer

VOCAB = 31


def tiny_spec(*mixers: spec.Mixer, layers: int = 2, **stack: Any) -> spec.Model:
    """Blocks with these mixers in turn: 16 numbers a token."""
    mixers = mixers or (spec.Attention(4, 2, position=spec.Rotary()),)
    blocks = tuple(spec.Block(mixer, spec.Gated(24, "silu"), spec.RMS()) for mixer in mixers)
    return spec.Model(VOCAB, 16, spec.Stack(blocks, layers, norm=spec.RMS(), **stack))


def tiny(*mixers: spec.Mixer, layers: int = 2, **stack: Any) -> Transformer:
    """That model with weights large enough that a wrong key shows in the fifth digit."""
    model = Transformer(tiny_spec(*mixers, layers=layers, **stack)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    return model


def text_to_text() -> qkv.Model:
    """A random T5 that reads words w3, w4, … and has one task."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 97)}}
    raw = tokenizers.Tokenizer(models.WordLevel(words, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    torch.manual_seed(0)
    model = qkv.Model(T5.spec(T5.tiny)).eval()
    model.tokenizer = Tokenizer(raw, eos="</s>", pad="<pad>", unk="<unk>")
    model.tasks = {"turn": {"prefix": "w9 w8 ", "max_length": 6, "num_beams": 3, "early_stopping": True}}
    return model
