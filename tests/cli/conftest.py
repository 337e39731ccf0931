"""A command line in this process, and a model of a few thousand weights for it."""

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

import qkv
from qkv import spec
from qkv.cli.app import run
from qkv.families.family import find
from qkv.inputs.train import train_tokenizer
from qkv.kernels.native import native
from qkv.load.weights import expand
from qkv.nn.stack import Transformer
from tests.inputs.samples import CHATML, CORPUS, sentencepiece


@dataclass(frozen=True)
class Ran:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object."""
        return json.loads(self.out)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


Command = Callable[..., Ran]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `qkv ARGS` with this standard input, in an empty folder and with caches of its own."""
    native()  # from the user's own cache: in an empty one it would be compiled again
    monkeypatch.setenv("QKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*args: object, stdin: str | io.TextIOBase = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        code = run([str(arg) for arg in args])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with random weights, a byte-level tokenizer and a chat template, as `qkv.save` writes it."""
    special = {"eos": "<|im_end|>", "start": "<|im_start|>"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such a corpus doesn't hold as many tokens as asked for
        tokenizer = train_tokenizer(CORPUS, "bpe", 400, special_tokens=[*special.values()], chat_template=CHATML)
    torch.manual_seed(0)
    model = qkv.Model(tiny_spec(tokenizer.vocab_size))
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if "tokens" in name else 0.3)
    model.tokenizer, model.generation = tokenizer, {"eos_token_id": tokenizer.id("<|im_end|>")}
    return qkv.save(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape in a GGUF file, with a SentencePiece tokenizer inside; the MLPs as Q8_0, the rest as F32."""
    words = sentencepiece()
    model = Transformer(tiny_spec(len(words["tokenizer.ggml.tokens"])))
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in words.items():
        if name != "general.architecture":  # GGUFWriter writes it
            add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
            add(name, value)
    writer.add_block_count(2)
    writer.add_context_length(2**16)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    parameters = dict(model.named_parameters())
    for row in expand(find("llama").gguf.weights, model):  # type: ignore[union-attr]
        tensor = parameters[row.targets[0]].detach().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if "ffn_" in row.theirs and tensor.ndim > 1 else None
        writer.add_tensor(row.theirs, tensor if kind is None else gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_spec(vocab: int) -> spec.Model:
    block = spec.Block(spec.Attention(4, 2, position=spec.Rotary()), spec.Gated(64, "silu"), spec.RMS())
    stack = spec.Stack((block,), 2, spec.RMS())
    return spec.Model(vocab, 32, stack, context=2**16, family="llama")
