"""A server of tiny models behind a real socket, and what must hold after whatever was sent to it."""

import dataclasses
import io
import json
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx
import pytest
import torch

import qkv
from qkv import spec
from qkv.families.bert import FAMILY as BERT
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from qkv.serve.engine import Engine
from qkv.serve.log import Log
from qkv.serve.options import Options
from qkv.serve.run import Server, address, bind
from tests import sentences
from tests.inputs.samples import CORPUS

CONTEXT = 512
SPECIAL = {"bos": "<s>", "eos": "<|im_end|>", "start": "<|im_start|>"}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Tokenizer:
    """Byte-level BPE with a chat template that takes tools."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such a corpus doesn't hold as many tokens as asked for
        return train_tokenizer(CORPUS, "bpe", 400, special_tokens=[*SPECIAL.values()], chat_template=TEMPLATE)


def llama(layers: int = 2, dim: int = 32, context: int = CONTEXT) -> qkv.Model:
    """A LLaMA of random weights that can chat."""
    words = tokenizer()
    block = spec.Block(spec.Attention(4, 2, position=spec.Rotary()), spec.Gated(2 * dim, "silu"), spec.RMS())
    torch.manual_seed(0)
    model = qkv.Model(
        spec.Model(words.vocab_size, dim, spec.Stack((block,), layers, spec.RMS()), context=context, family="llama")
    )
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 if "tokens" in name else 0.3)
    model.tokenizer, model.generation = words, {"eos_token_id": words.id(SPECIAL["eos"])}
    return model.eval()


class Running:
    """A server in a thread of this process, at a free port of the loopback."""

    def __init__(
        self, models: Mapping[str, qkv.Model], *, start: bool = True, sizes: Any = None, **options: Any
    ) -> None:
        sizes = {"cache": 4096, "most_running": 16, "most_waiting": 32, "seed": 0, **(sizes or {})}
        self.engines = {name: Engine(model, name=name, **sizes) for name, model in models.items()}
        self.options = Options(port=0, **options)
        self.lines = io.StringIO()
        self.server = Server(self.engines, self.options, Log(self.lines))
        listening = bind(self.options)
        self.url = address(listening)
        self.port = listening.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, args=([listening],), daemon=True)
        if start:
            for engine in self.engines.values():
                engine.start()
        self.thread.start()
        until(lambda: self.server.started)
        if start:
            until(lambda: all(engine.ready or not engine.alive for engine in self.engines.values()))

    @property
    def engine(self) -> Engine:
        """The first one."""
        return next(iter(self.engines.values()))

    def log(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self.lines.getvalue().splitlines()]

    def close(self) -> None:
        """Stop it, and wait."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def send(self, raw: bytes, wait: float = 10.0) -> bytes:
        """What comes back for these bytes until the connection is closed or nothing comes any more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(raw)
            return drain(connection)

    def healthy(self) -> None:
        """What must hold after every test: it lives, the next request succeeds, and all pages are free again."""
        with httpx.Client(base_url=self.url, timeout=30, headers=self.headers) as client:
            assert client.get("/health").json() == {"status": "ok"}
            for name, engine in self.engines.items():
                if engine.generates:
                    body = {"model": name, "prompt": "one two", "max_tokens": 2, "temperature": 0}
                    found = client.post("/v1/completions", json=body)
                    assert found.status_code == 200, found.text
        for engine in self.engines.values():
            assert engine.alive, engine.failure
            until(lambda engine=engine: engine.state().used == 0)
            assert engine.state().free == engine.state().pages
            assert engine.state().faults == 0

    @property
    def headers(self) -> dict[str, str]:
        """With a key, if there are any."""
        return {"authorization": f"Bearer {self.options.keys[0]}"} if self.options.keys else {}


def drain(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or is silent for the socket's timeout."""
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(pieces)


def request(path: str = "/v1/completions", *headers: str, body: bytes = b"") -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it didn't become true in time"
        time.sleep(0.005)


def post(url: str, path: str, body: Any, **options: Any) -> httpx.Response:
    """One request of its own connection."""
    return httpx.post(url + path, json=body, timeout=30, **options)


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which must be one in OpenAI's envelope."""
    assert response.status_code == status, response.text[:500]
    found: dict[str, Any] = response.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert isinstance(found["error"]["message"], str)
    return found["error"]


def bert(head: spec.Head) -> qkv.Model:
    """A BERT of random weights with this head."""
    words = sentences.tokenizer()
    sizes = {"vocab_size": words.vocab_size, "max_position_embeddings": sentences.POSITIONS, "pad_token_id": 0}
    made = BERT.spec({**BERT.tiny, **sizes, "hidden_size": sentences.DIM})
    torch.manual_seed(0)
    model = qkv.Model(dataclasses.replace(made, head=head))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.tokenizer = words
    return model.eval()


@pytest.fixture(scope="session")
def sentence_model() -> qkv.Model:
    """One that gives vectors."""
    return bert(spec.Pool("mean", normalize=True))


@pytest.fixture(scope="module")
def served(sentence_model: qkv.Model) -> Iterator[Running]:
    """A server of two models, "tiny" (a LLaMA) and "vectors" (a BERT)."""
    running = Running({"tiny": llama(), "vectors": sentence_model})
    yield running
    running.close()


@pytest.fixture
def url(served: Running) -> Iterator[str]:
    """Its address; afterwards it must be as it was."""
    yield served.url
    served.healthy()


@pytest.fixture
def engine(served: Running) -> Engine:
    """The LLaMA's engine."""
    return served.engine
