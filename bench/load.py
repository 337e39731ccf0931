"""Requests as people send them: lengths of a real trace, texts of a real corpus, arrivals by chance; and a client.

The client is a few lines over asyncio's sockets: what is measured runs on the same cores, so it must cost little.
"""

import asyncio
import gzip
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.waste import lengths
from qkv.inputs.text import Tokenizer

TRACE = "trace_azure_llm_2023/AzureLLMInferenceTrace_{}.csv.gz"
TEXT = "lm_wikitext2_eval/test.txt.gz"


class Request(NamedTuple):
    """A prompt of `length` tokens and how long its answer shall be."""

    prompt: str
    length: int
    answer: int


def requests(
    data: Path, tokenizer: Tokenizer, count: int, *, scale: float, context: int, kind: str = "conv", seed: int = 0
) -> list[Request]:
    """`count` requests of the trace, drawn with `seed`: its lengths times `scale`, those that fit into the `context`;
    each prompt another piece of the corpus. Their lengths are of the text as it is sent."""
    rng = random.Random(seed)
    scaled = [(max(1, round(a * scale)), max(1, round(b * scale))) for a, b in lengths(data / TRACE.format(kind))]
    fit = [(prompt, answer) for prompt, answer in scaled if prompt + answer + 8 <= context]
    ids = tokenizer.encode(gzip.decompress((data / TEXT).read_bytes()).decode("utf-8"), special=False)
    found = []
    for prompt, answer in rng.sample(fit, count):
        start = rng.randrange(len(ids) - prompt)
        text = tokenizer.decode(ids[start : start + prompt]).strip("\ufffd") or "The"
        found.append(Request(text, len(tokenizer.encode(text)), answer))
    return found


def arrivals(rate: float, count: int, seed: int = 0) -> list[float]:
    """When each of so many requests comes, in seconds: a Poisson process; rate inf: all at once."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += 0.0 if rate == float("inf") else rng.expovariate(rate)
        found.append(at)
    return found


@dataclass
class Answer:
    """What became of a request; times in seconds of one clock. due: when it was to be sent; pieces: when each piece of
    text came; tokens: that the server counted, or one a piece."""

    due: float
    pieces: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    prompt: int | None = None
    ended: float | None = None
    error: str | None = None


async def ask(port: int, body: dict[str, Any], answer: Answer) -> Answer:
    """Send a request to /v1/completions and note what comes; whatever goes wrong is in `error`."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        try:
            raw = json.dumps(body).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}\r\n"
            writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + raw)
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            if status != 200:
                answer.error = f"{status}: {(await reader.read(500)).decode('utf-8', 'replace')}"
                return answer
            async for event in _events(reader):
                _note(answer, event)
        finally:
            writer.close()
    except (OSError, ValueError, IndexError, asyncio.IncompleteReadError) as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    else:
        answer.ended = time.perf_counter()
        if not answer.pieces and answer.error is None:
            answer.error = "no text came"
    return answer


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The data of server-sent events, of a body in chunks."""
    rest = b""
    while size := int(await reader.readline(), 16):
        rest += await reader.readexactly(size)
        await reader.readexactly(2)
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                yield json.loads(line[5:])


def _note(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"])
        return
    text = "".join(choice["text"] for choice in event["choices"])
    if text:
        answer.pieces.append(time.perf_counter())
        answer.text += text
    if usage := event.get("usage"):
        answer.tokens, answer.prompt = usage["completion_tokens"], usage["prompt_tokens"]


async def offer(
    port: int, bodies: Sequence[dict[str, Any]], at: Sequence[float], wait: float, done: Callable[[], None] = bool
) -> tuple[list[Answer], float]:
    """Send each body at its time, whatever became of those before; wait so many seconds after the last one, and give up
    what is open then → answers, seconds in all."""
    begin = time.perf_counter()
    answers = [Answer(begin + when) for when in at]

    async def one(body: dict[str, Any], answer: Answer) -> None:
        await asyncio.sleep(max(0.0, answer.due - time.perf_counter()))
        await ask(port, body, answer)
        done()

    tasks = [asyncio.create_task(one(body, answer)) for body, answer in zip(bodies, answers, strict=True)]
    await asyncio.wait(tasks, timeout=max(at) + wait)
    took = time.perf_counter() - begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for answer in answers:
        answer.tokens = answer.tokens or len(answer.pieces)
    return answers, took


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of all are not above (the nearest rank); nan of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else float("nan")
