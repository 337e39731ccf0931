"""Servers of the OpenAI API over the same weights, each started as a process of its own and stopped again.

    qkv                 qkv serve MODEL
    llama.cpp           python -m llama_cpp.server, which answers one request after the other
    llama.cpp-native    llama-server, llama.cpp's own, which answers several at once (`--llama-server PATH`, or on PATH)
    transformers        transformers serve --continuous-batching, float32, from a folder of the dequantized weights

All have the same number of threads, are pinned to the same processors, and have room for as many tokens where that can
be said. Each has what makes it fastest here: llama.cpp computes the logits of the last token alone and isn't
interrupted by the next request; torch's threads, which spin while they wait, spin briefly (there are more threads than
processors in a server: a spinning one holds up another).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.engines import SHORT_SPIN
from bench.machine import pin_process

START = 180.0  # seconds until a server must answer


@dataclass(frozen=True)
class Setup:
    """What every server is told. model: a reference that resolves to `file`, a GGUF; plain: the dequantized folder;
    context: tokens of a request at most; cache: of all together; slots: sequences at once, where that is a setting."""

    model: str
    file: str
    plain: str
    threads: int
    context: int
    cache: int
    slots: int
    llama_server: str | None


@dataclass(frozen=True)
class Kind:
    """How a server is started. more: what its requests say beside the common fields, given max_tokens; answers are as
    long as asked for wherever a server can be told so. name: of the model in requests."""

    command: Callable[[Setup, int], Sequence[str]]
    more: Callable[[int], dict[str, Any]]
    name: Callable[[Setup], str]
    ready: str = "/health"
    env: tuple[tuple[str, str], ...] = ()
    plain: bool = False


def _qkv(it: Setup, port: int) -> list[str]:
    sizes = ["--cache", str(it.cache), "--max-running", str(it.slots), "--max-waiting", "4096"]
    return [*_python("qkv", "serve", f"bench={it.model}"), "--port", str(port), "--threads", str(it.threads), *sizes]


def _llama(it: Setup, port: int) -> list[str]:
    said = {
        "model": it.file, "model_alias": "bench", "port": port, "n_ctx": it.context, "n_threads": it.threads,
        "n_threads_batch": it.threads, "logits_all": False, "interrupt_requests": False, "verbose": False,
    }  # fmt: skip
    return [*_python("llama_cpp.server"), *(str(word) for key, value in said.items() for word in (f"--{key}", value))]


def _llama_native(it: Setup, port: int) -> list[str]:
    said = {
        "-m": it.file, "-a": "bench", "--port": port, "-c": it.cache, "-np": it.slots, "-t": it.threads,
        "-tb": it.threads,
    }  # fmt: skip
    words = [str(word) for key, value in said.items() for word in (key, value)]
    return [it.llama_server or "llama-server", *words, "-cb", "-kvu", "--no-webui"]


def _transformers(it: Setup, port: int) -> list[str]:
    command = [str(Path(sys.executable).with_name("transformers")), "serve", it.plain, "--continuous-batching"]
    device = ["--device", "cpu", "--dtype", "float32", "--port", str(port), "--host", "127.0.0.1"]
    blocks = ["--cb-block-size", "16", "--cb-num-blocks", str(it.cache // 16), "--cb-max-batch-tokens", "512"]
    return [*command, *device, *blocks]


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


KINDS = {
    "qkv": Kind(
        _qkv,
        lambda n: {"ignore_eos": True, "stream_options": {"include_usage": True}},
        lambda it: "bench",
        env=SHORT_SPIN,
    ),
    "llama.cpp": Kind(_llama, lambda n: {"repeat_penalty": 1.0}, lambda it: "bench", ready="/v1/models"),
    "llama.cpp-native": Kind(
        _llama_native,
        lambda n: {"ignore_eos": True, "stream_options": {"include_usage": True}, "cache_prompt": False},
        lambda it: "bench",
    ),
    "transformers": Kind(
        _transformers,
        lambda n: {"generation_config": json.dumps({"max_new_tokens": n, "eos_token_id": -1, "do_sample": False})},
        lambda it: it.plain,
        env=SHORT_SPIN,
        plain=True,
    ),
}


class Server:
    """A running server at a port of the loopback. RuntimeError: it doesn't start, with the end of what it printed."""

    def __init__(self, kind: str, setup: Setup, port: int) -> None:
        self.kind, self.port = KINDS[kind], port
        self.model, self.url = self.kind.name(setup), f"http://127.0.0.1:{port}"
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the server)
        count = {key: str(setup.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = list(self.kind.command(setup, port))
        if shutil.which(command[0]) is None:
            raise RuntimeError(f"there is no {command[0]}")
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **count, "HF_HUB_OFFLINE": "1", **dict(self.kind.env)},
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: pin_process(setup.threads),
        )
        begin = time.perf_counter()
        try:
            while not self.answers():
                if self.process.poll() is not None:
                    raise RuntimeError(f"it ended with {self.process.returncode}:\n{self.printed()}")
                if time.perf_counter() - begin > START:
                    raise RuntimeError(f"it didn't answer within {START:.0f} s:\n{self.printed()}")
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise
        self.started = time.perf_counter() - begin

    def answers(self) -> bool:
        """Does it say that it is ready?"""
        try:
            with urllib.request.urlopen(self.url + self.kind.ready, timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def body(self, prompt: str, tokens: int) -> dict[str, Any]:
        """A request for a greedy answer of so many tokens, as a stream."""
        common = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "stream": True}
        return {**common, **self.kind.more(tokens)}

    def printed(self) -> str:
        """The end of what it wrote."""
        self._printed.seek(max(0, self._printed.seek(0, os.SEEK_END) - 2000))
        return self._printed.read().decode("utf-8", "replace")

    def stop(self) -> None:
        """End it; with force where it doesn't end in 20 s."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._printed.close()
