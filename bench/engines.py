"""The engines that bench.decode compares, each fed with the same ids and asked for the likeliest token.

An engine reads B prompts of equal length and goes on with its own greedy choices. Nothing is imported before an engine
is made, so each can have a process of its own, with its best settings:

qkv            the weights packed as in the file, `qkv.generate.step.read`: the step that `generate` runs
qkv-loop       the same model through `qkv.generate.decode.decode`, with its sampler and its bookkeeping
qkv-plain      without native kernels: the weights as float32
llama.cpp      the same file, llama-cpp-python's low-level calls: one `llama_decode` a step, then the largest logit
llama.cpp-rows the same without its "extra buffers" (weights rearranged at load, AMX): as its AMX path faults on some
               virtual machines (ggml-org/llama.cpp#20824)
transformers   the same numbers dequantized (float32, bfloat16), sdpa, its usual cache, logits of the last token only
ctranslate2    the dequantized numbers in its int8 (a scale a row), timed by its callback for each token
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Ids = list[list[int]]


class Run(NamedTuple):
    """Seconds to the first token of each sequence, seconds for all later ones, and the tokens."""

    prefill: float
    decode: float
    tokens: Ids


class Engine(ABC):
    """`about`: version and settings, for beside the figures."""

    about = ""

    @abstractmethod
    def run(self, prompts: Ids, tokens: int) -> Run:
        """Read prompts of one length; give each a first token and `tokens` more."""


class Stepwise(Engine):
    """An engine that can be asked for one step."""

    @abstractmethod
    def start(self, batch: int, length: int) -> None:
        """Forget; make room for so many sequences of so many tokens. (Not timed.)"""

    @abstractmethod
    def step(self, chunks: Ids) -> list[int]:
        """Read these tokens; the likeliest next one of each sequence."""

    def run(self, prompts: Ids, tokens: int) -> Run:
        self.start(len(prompts), len(prompts[0]) + tokens + 1)
        begin = time.perf_counter()
        out = [self.step(prompts)]
        middle = time.perf_counter()
        for _ in range(tokens):
            out.append(self.step([[one] for one in out[-1]]))
        end = time.perf_counter()
        return Run(middle - begin, end - middle, [list(row) for row in zip(*out, strict=True)])


class Qkv(Stepwise):
    """Ours, one step at a time; a long prompt in chunks, as `decode` reads it."""

    def __init__(self, model: str, threads: int) -> None:
        import torch

        from qkv.generate.settings import Settings
        from qkv.kernels.native import reason
        from qkv.model import load

        torch.set_num_threads(threads)
        self.model, self.chunk = load(model), Settings().prefill_chunk
        how = re.sub(r" \(/[^)]*\)", "", reason())  # results don't say where somebody's files lie
        self.about = "; ".join([f"torch {torch.__version__}", how, *self.model.notes])

    def start(self, batch: int, length: int) -> None:
        from qkv.generate.step import Reader, new_cache

        self.read = Reader(self.model)
        self.cache = new_cache(self.model, [[]] * batch, length, self.chunk)

    def step(self, chunks: Ids) -> list[int]:
        from qkv.generate.step import share

        at = [0] * len(chunks)
        while True:
            counts = share([len(chunk) - i for chunk, i in zip(chunks, at, strict=True)], self.chunk)
            parts = [chunk[i : i + n] for chunk, i, n in zip(chunks, at, counts, strict=True)]
            at = [i + n for i, n in zip(at, counts, strict=True)]
            last = all(i == len(chunk) for i, chunk in zip(at, chunks, strict=True))
            prompts = [len(part) if len(chunk) > 1 else 0 for chunk, part in zip(chunks, parts, strict=True)]
            logits = self.read(parts, self.cache, [int(last)] * len(parts), prompts)
            if last:
                tokens: list[int] = logits.float().numpy().argmax(-1).tolist()  # torch's takes 17 times as long
                return tokens


class QkvLoop(Qkv):
    """Ours, by the loop that a person runs."""

    def run(self, prompts: Ids, tokens: int) -> Run:
        from qkv.generate.decode import decode
        from qkv.generate.settings import Settings

        wish = Settings(max_tokens=tokens + 1, ignore_eos=True, prefill_chunk=self.chunk)
        out: Ids = [[] for _ in prompts]
        begin = first = time.perf_counter()
        for step in decode(self.model, prompts, [wish] * len(prompts)):
            out[step.index].append(step.choice.token)
            if step.index == len(prompts) - 1 and len(out[-1]) == 1:
                first = time.perf_counter()
        return Run(first - begin, time.perf_counter() - first, out)


class Llama(Stepwise):
    """llama.cpp, with a context as large as each run needs and flash attention as it sees fit."""

    def __init__(self, model: str, threads: int, extra: bool = True) -> None:
        import llama_cpp as c
        import numpy as np

        self.c, self.np, self.threads = c, np, threads
        self.log = c.llama_log_callback(lambda level, text, data: None)
        c.llama_log_set(self.log, None)
        c.llama_backend_init()
        params = c.llama_model_default_params()
        params.use_extra_bufts = extra
        self.model = c.llama_model_load_from_file(model.encode(), params)
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.context: Any = None
        self.batch: Any = None
        info = c.llama_print_system_info().decode().strip()
        self.about = f"llama-cpp-python {c.__version__}, extra buffers {'on' if extra else 'off'}; {info}"

    def start(self, batch: int, length: int) -> None:
        c = self.c
        if self.context is not None:
            c.llama_batch_free(self.batch)
            c.llama_free(self.context)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * (-(-length // 256) * 256), batch
        params.n_batch = min(2048, params.n_ctx)
        params.n_threads = params.n_threads_batch = self.threads
        self.most, self.at = params.n_batch, 0
        self.context = c.llama_init_from_model(self.model, params)
        self.batch = c.llama_batch_init(self.most, 0, 1)

    def step(self, chunks: Ids) -> list[int]:
        batch, places, n = self.batch, [], 0
        for sequence, chunk in enumerate(chunks):
            for i, token in enumerate(chunk):
                if n == self.most:
                    self._decode(n)
                    n = 0
                last = i == len(chunk) - 1
                batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, self.at + i, 1
                batch.seq_id[n][0], batch.logits[n] = sequence, last
                places += [n] * last
                n += 1
        self._decode(n)
        self.at += len(chunks[0])
        logits = (self.c.llama_get_logits_ith(self.context, place) for place in places)
        return [int(self.np.ctypeslib.as_array(row, (self.vocab,)).argmax()) for row in logits]

    def _decode(self, n: int) -> None:
        self.batch.n_tokens = n
        if self.c.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")


class Transformers(Stepwise):
    """transformers, from a folder of the dequantized weights."""

    def __init__(self, folder: str, threads: int, dtype: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, make = torch, transformers.AutoModelForCausalLM
        self.model = make.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self.model.train(False)
        self.about = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def start(self, batch: int, length: int) -> None:
        self.past: Any = None

    def step(self, chunks: Ids) -> list[int]:
        with self.torch.no_grad():
            out = self.model(self.torch.tensor(chunks), past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = out.past_key_values
        tokens: list[int] = out.logits[:, -1].argmax(-1).tolist()
        return tokens


class CTranslate2(Engine):
    """CTranslate2, from a folder of the dequantized weights, converted to int8."""

    def __init__(self, folder: str, threads: int) -> None:
        import json

        import ctranslate2

        kept = str(Path(folder) / "ctranslate2")
        self.model = ctranslate2.Generator(kept, device="cpu", inter_threads=1, intra_threads=threads)
        self.words = json.loads((Path(kept) / "vocabulary.json").read_text())
        self.about = f"ctranslate2 {ctranslate2.__version__}, {self.model.compute_type}"

    def run(self, prompts: Ids, tokens: int) -> Run:
        out: Ids = [[] for _ in prompts]
        first: list[float] = []

        def take(step: Any) -> bool:
            out[step.batch_id].append(step.token_id)
            if step.step == 0 and step.batch_id == len(prompts) - 1:
                first.append(time.perf_counter())
            return False

        words = [[self.words[i] for i in prompt] for prompt in prompts]
        begin = time.perf_counter()
        self.model.generate_batch(
            words, beam_size=1, sampling_topk=1, max_length=tokens + 1, min_length=tokens + 1,
            include_prompt_in_result=False, callback=take,
        )  # fmt: skip
        return Run(first[0] - begin, time.perf_counter() - first[0], out)


@dataclass(frozen=True)
class Kind:
    """How an engine is made. `width`: bytes a weight has in its memory (None: the file's), `cache`: bytes of a cached
    number; `plain`: it reads a folder of dequantized weights; `env`: what its process is started with."""

    make: Callable[[str, int], Engine]
    width: int | None
    cache: int
    plain: bool = False
    env: tuple[tuple[str, str], ...] = ()


# What the command line sets for itself: torch's threads shall not spin on the cores that the native kernels use.
SHORT_SPIN = (("GOMP_SPINCOUNT", "1000"),)
ENGINES = {
    "qkv": Kind(Qkv, None, 2, env=SHORT_SPIN),
    "qkv-loop": Kind(QkvLoop, None, 2, env=SHORT_SPIN),
    "qkv-plain": Kind(Qkv, 4, 4, env=(*SHORT_SPIN, ("QKV_NATIVE", "0"))),
    "llama.cpp": Kind(Llama, None, 2),
    "llama.cpp-rows": Kind(lambda model, n: Llama(model, n, extra=False), None, 2),
    "transformers-float32": Kind(lambda model, n: Transformers(model, n, "float32"), 4, 4, plain=True),
    "transformers-bfloat16": Kind(lambda model, n: Transformers(model, n, "bfloat16"), 2, 2, plain=True),
    "ctranslate2": Kind(CTranslate2, 1, 4, plain=True),
}
