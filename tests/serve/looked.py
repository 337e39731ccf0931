"""The models that tests of the page look into: one that chats, and one that reads both ways."""

import warnings
from collections.abc import Iterator

import torch

import qkv
from qkv import spec
from qkv.inputs.train import train_tokenizer
from tests.inputs.samples import CORPUS
from tests.serve.conftest import Running, llama


def encoder() -> qkv.Model:
    """As BERT is, of random weights, with a head that gives vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such a corpus doesn't hold as many tokens as asked for
        words = train_tokenizer(CORPUS, "wordpiece", 200)
    mixer = spec.Attention(4, 4, mask=spec.Full())
    block = spec.Block(mixer, spec.Plain(48, "gelu"), spec.LayerNorm(), "post")
    embed = spec.Embed(spec.Learned(512), norm=spec.LayerNorm(), segments=2)
    torch.manual_seed(0)
    model = qkv.Model(spec.Model(words.vocab_size, 16, encoder=spec.Stack((block,), 2, embed=embed), head=spec.Pool()))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.5)
    model.tokenizer = words
    return model.eval()


def serve() -> Iterator[Running]:
    """A server of both, "tiny" and "vectors"."""
    running = Running({"tiny": llama(), "vectors": encoder()})
    yield running
    running.close()
