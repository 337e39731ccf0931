"""Does a server stay as it is? Minutes of random requests, disconnections and nonsense, and what the process holds.

    python -m bench.soak [--minutes 10] [--clients 12] [--model smollm2] [--json bench/results/DATE-soak.json]

A real `qkv serve` process gets, from as many clients at once, prompts and answers of random lengths: streams, whole
answers, several answers a prompt, log-probabilities, JSON by a schema, scores without an answer, chats, tokenizing; a
third of them are cut off by the client at a random moment, and one in ten is wrong and must get a 4xx. The cache is
small, so that requests wait and are preempted. Every `--every` seconds the clients pause until the engine is empty;
then are noted: resident memory, file descriptors, threads, sockets, free pages. It fails (exit code 1) where a request
gets a 5xx or the wrong answer, a page isn't free again, or after the first third of the time memory, descriptors or
threads still grow.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.machine import describe, heading, keep, quiet

WORDS = ("the", "cat", "sat", "on", "a mat", "and", "all of them", "went", "down", "to sea", "in ships", "of old oak")
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}
MOST_MB = 24.0  # resident memory may differ by so much: allocators keep what they have, and prefixes fill the cache
FIXED = {"max_tokens": 5, "temperature": 0, "prompt": "The cat sat on the mat and"}


def text(rng: random.Random, most: int) -> str:
    """Words, up to so many, mostly few; half of them with a beginning that others have too."""
    begin = "Once upon a time there was a little cat. " * 4 if rng.random() < 0.5 else ""
    return begin + " ".join(rng.choices(WORDS, k=1 + int(most * rng.random() ** 3)))


def wish(rng: random.Random, longest: int) -> tuple[str, dict[str, Any], bool]:
    """A request: where to, what, and whether it is right."""
    n = 1 + int(longest / 4 * rng.random())
    prompt, common = text(rng, longest // 2), {"max_tokens": n, "temperature": rng.choice([0, 0.7, 1.3])}
    chat = {"messages": [{"role": "user", "content": prompt}], **common}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    right: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": prompt, **common}),
        ("/v1/completions", {"prompt": prompt, **common, "stream": True}),
        ("/v1/completions", {"prompt": prompt, **common, "n": 3, "logprobs": 3}),
        ("/v1/completions", {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("/v1/completions", {"prompt": [prompt, "Another one"], **common, "stop": ["the ", "sea"]}),
        ("/v1/chat/completions", {**chat, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**chat, "logprobs": True, "top_logprobs": 2, "seed": 1}),
        ("/v1/chat/completions", {**chat, "max_tokens": 24, "response_format": schema}),
        ("/tokenize", {"prompt": prompt}),
    ]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "", **common}),
        ("/v1/completions", {"prompt": prompt, "max_tokens": 10**9}),
        ("/v1/completions", {"prompt": [10**7], **common}),
        ("/v1/completions", {"prompt": prompt, "temperature": -1}),
        ("/v1/chat/completions", {**chat, "response_format": {**schema, "json_schema": {"name": "x", "schema": 7}}}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/nothing", {}),
    ]
    ok = rng.random() >= 0.1
    return (*rng.choice(right if ok else wrong), ok)


class Soak:
    """The clients, and what they saw."""

    def __init__(self, url: str, longest: int, seed: int) -> None:
        self.url, self.longest, self.seed = url, longest, seed
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, clients: int, until: float) -> None:
        """So many clients until then; all are through at the end."""
        limits = httpx.Limits(max_connections=2 * clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=300, limits=limits) as client:
            self.seed += 1
            await asyncio.gather(
                *(self._client(client, random.Random(f"{self.seed} {i}"), until) for i in range(clients))
            )
            answer = await client.post("/v1/completions", json={"model": "soak", **FIXED})
            self.seen[answer.json()["choices"][0]["text"]] += 1

    async def _client(self, client: httpx.AsyncClient, rng: random.Random, until: float) -> None:
        while time.monotonic() < until:
            path, body, ok = wish(rng, self.longest)
            patience = rng.expovariate(1.0) if rng.random() < 1 / 3 else None
            try:
                async with asyncio.timeout(patience):
                    status = await self._one(client, path, {"model": "soak", **body})
            except TimeoutError:
                self.seen["cut off"] += 1
                continue
            self.seen[f"status {status}"] += 1
            expected = status in (200, 429) if ok else 400 <= status < 500
            if not expected:
                self.wrong.append(f"{status} for {path} {json.dumps(body)[:200]}")

    async def _one(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
        async with client.stream("POST", path, json=body) as response:
            whole = await response.aread()
            if body.get("stream") and response.status_code == 200 and not whole.rstrip().endswith(b"data: [DONE]"):
                self.wrong.append(f"a stream without its end: {whole[-200:]!r}")
            return response.status_code


def held(process: psutil.Process, url: str, patience: float = 60.0) -> dict[str, Any]:
    """What the process holds once the engine is empty."""
    end = time.monotonic() + patience
    while True:
        [state] = httpx.get(url + "/look/state", timeout=30).json()
        if state["running"] == state["waiting"] == state["used"] == 0 or time.monotonic() > end:
            break
        time.sleep(0.1)
    time.sleep(0.5)  # what is being closed is closed
    return {
        "MB": process.memory_info().rss / 2**20,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "connections": len(process.net_connections()),
        "used": state["used"],
        "free": state["free"],
        "preemptions": state["preemptions"],
        "hits": state["prefix_hits"],
        "tokens": state["generated_tokens"],
        "faults": state["faults"],
    }


def grown(points: list[dict[str, Any]]) -> list[str]:
    """What grew between the second third of the time and the last one, or isn't as it was."""
    settled, last = points[len(points) // 3 : 2 * len(points) // 3] or points[:1], points[2 * len(points) // 3 :]

    def middle(key: str, of: list[dict[str, Any]]) -> float:
        return statistics.median(point[key] for point in of)

    found = [
        f"{key} grew from {middle(key, settled):.0f} to {middle(key, last):.0f}"
        for key, most in (("MB", MOST_MB), ("descriptors", 1), ("threads", 1), ("connections", 1))
        if middle(key, last) > middle(key, settled) + most
    ]
    found += [f"{point['used']} pages were not free again" for point in points if point["used"]]
    return found + [f"{point['faults']} steps failed" for point in points[-1:] if point["faults"]]


def serve(args: argparse.Namespace, log: Any) -> tuple[subprocess.Popen[bytes], str]:
    """`qkv serve`, and where."""
    sizes = ["--cache", str(args.cache), "--max-running", "16", "--max-waiting", "64", "--threads", str(args.threads)]
    command = [sys.executable, "-m", "qkv", "serve", f"soak={args.model}", "--port", str(args.port), *sizes]
    server = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(args.threads)})
    url = f"http://127.0.0.1:{args.port}"
    end = time.monotonic() + 180
    while True:
        try:
            if httpx.get(url + "/health", timeout=5).status_code == 200:
                return server, url
        except httpx.TransportError:
            pass
        if server.poll() is not None or time.monotonic() > end:
            server.kill()
            raise SystemExit(f"the server doesn't start: {server.wait()}")
        time.sleep(0.2)


def soak(args: argparse.Namespace, show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryFile() as log:
        server, url = serve(args, log)
        try:
            run, process = Soak(url, args.longest, args.seed), psutil.Process(server.pid)
            points, begin = [], time.monotonic()
            while time.monotonic() < begin + 60 * args.minutes:
                asyncio.run(run.run(args.clients, min(time.monotonic() + args.every, begin + 60 * args.minutes)))
                points.append({"minutes": (time.monotonic() - begin) / 60, **held(process, url)})
                show(points[-1])
        finally:
            server.terminate()
            code = server.wait(60)
        log.seek(0)
        traces = [line.decode()[:2000] for line in log if b'"trace"' in line]
    answers = {key: count for key, count in run.seen.items() if key not in ("cut off",) and "status " not in key}
    failed = run.wrong[:20] + grown(points) + traces[:5]
    failed += [f"the same request had {len(answers)} different answers"] * (len(answers) != 1)
    failed += [f"the server ended with {code}"] * (code != 0)
    failed += ["no request was preempted: it was too easy, take a smaller cache"] * (not points[-1]["preemptions"])
    requests = {key: count for key, count in run.seen.items() if key not in answers}
    return {"requests": requests, "points": points, "failed": failed}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=15, help="seconds between two looks")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--longest", type=int, default=400, help="words of a prompt, twice")
    parser.add_argument("--cache", type=int, default=1024, help="tokens: few, so that requests are preempted")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--port", type=int, default=8390)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the server too
    result: dict[str, Any] = {"machine": describe(args.threads), "load": quiet()}

    def show(point: dict[str, Any]) -> None:
        print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items()), flush=True)

    result |= soak(args, show)
    print(heading(result))
    print(", ".join(f"{count} {what}" for what, count in sorted(result["requests"].items())))
    print("\n".join(result["failed"]) or "nothing grew, nothing failed")
    keep(result, args.json)
    raise SystemExit(bool(result["failed"]))


if __name__ == "__main__":
    main()
