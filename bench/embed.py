"""qkv beside sentence-transformers on the same texts: tokens a second and the vectors, interleaved in one run.

    python -m bench.embed [--texts FILE] [--count 1000] [--threads 2] [--rounds 5] [--json bench/results/NAME.json]

Every round embeds all texts with each engine in turn, A, B, A, B …; what is too long is truncated at the same length.
A rate is the tokens that are read (special ones included, padding not) by the whole call, tokenizing and sorting too.
FLOP/s are what these tokens must cost, beside what the same threads reach at best in a plain matrix product. Texts are
the lines of a file (.gz too; of .jsonl the field "text"), or the paragraphs of this repository. Those that
name a special token, such as [SEP], are left out: to qkv that is text, to the other a separator.
"""

import argparse
import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import describe, heading, keep, pin, quiet, seconds, spread
from qkv import count
from qkv.load.reference import resolve
from qkv.model import load
from qkv.tasks.embed import BUDGET, Embeddings, embed
from qkv.train.peak import gemm_peak

ROOT = Path(__file__).parents[1]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
THEIRS = "sentence-transformers"
SPECIAL = re.compile(r"\[(?:CLS|SEP|MASK|PAD|UNK)\]")
Engine = Callable[[list[str]], Any]  # vectors [texts, dim]


def qkv_engine(path: str, dtype: torch.dtype, budget: int) -> Callable[[list[str]], Embeddings]:
    """Ours, cutting where theirs does."""
    model = load(path, dtype)
    return lambda texts: embed(model, model.tokenizer, texts, model.sentence, on_long="truncate", budget=budget)


def their_engine(path: str, dtype: torch.dtype, batch_size: int) -> Engine:
    """sentence-transformers as it comes."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path, device="cpu", model_kwargs={"dtype": dtype})
    return lambda texts: model.encode(texts, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)


def read_texts(file: Path | None, number: int) -> list[str]:
    """The first so many texts that are not empty."""
    if file is None:
        files = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("qkv/**/*.py")])
        found = [text for path in files for text in path.read_text(encoding="utf-8").split("\n\n")]
    else:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        found = raw.decode("utf-8").split("\n")
        if ".jsonl" in file.suffixes:
            found = [json.loads(line)["text"] for line in found if line]
    texts = (text.strip() for text in found)
    return [text for text in texts if text and not SPECIAL.search(text)][:number]


def measure(engines: dict[str, Engine], texts: list[str], tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Tokens a second by engine."""
    rates: dict[str, list[float]] = defaultdict(list)
    for round_ in range(rounds + 1):  # the first one warms up
        for name, engine in engines.items():
            took = seconds(lambda engine=engine: engine(texts))  # type: ignore[misc]
            if round_:
                rates[name].append(tokens / took)
        print(f"round {round_}/{rounds}", file=sys.stderr)
    return {name: spread(values) for name, values in rates.items()}


def cosines(engines: dict[str, Engine], texts: list[str]) -> dict[str, dict[str, float]]:
    """Of each engine's vectors with sentence-transformers' in float32."""
    expected = np.asarray(engines[f"{THEIRS} float32"](texts))
    found = {}
    for name, engine in engines.items():
        vectors = engine(texts)
        vectors = (vectors.vectors if isinstance(vectors, Embeddings) else vectors.float().numpy()).astype(np.float64)
        products = (vectors * expected).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
        found[name] = {"min": float(products.min()), "mean": float(products.mean())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="a reference that resolves to a sentence-transformers folder")
    parser.add_argument("--texts", type=Path, help="a text a line; this repository's own paragraphs if not given")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=BUDGET, help="tokens that qkv reads at once")
    parser.add_argument("--batch-size", type=int, default=32, help="texts that sentence-transformers reads at once")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    pin(args.threads)
    load_before = quiet()
    path, texts = str(resolve(args.model).path), read_texts(args.texts, args.count)
    best = {f"{d} GFLOP/s": gemm_peak(DTYPES[d]) / 1e9 for d in args.dtypes}
    engines: dict[str, Engine] = {}
    for d in dict.fromkeys(["float32", *args.dtypes]):  # float32 is what all are compared with
        engines[f"qkv {d}"] = qkv_engine(path, DTYPES[d], args.budget)
        engines[f"{THEIRS} {d}"] = their_engine(path, DTYPES[d], args.batch_size)
    done = engines["qkv float32"](texts)
    size = {"texts": len(texts), "tokens": done.tokens, "limit": done.limit, "cut": len(done.long)}
    flops = count.flops_per_token(load(path).spec, done.tokens // len(texts))
    result: dict[str, Any] = {"machine": describe(args.threads), "load": load_before, "best": best, "size": size}
    result |= {"budget": args.budget, "batch size": args.batch_size, "FLOP a token": flops}
    result |= {"cosine": cosines(engines, texts), "tok/s": measure(engines, texts, done.tokens, args.rounds)}
    show(result)
    keep(result, args.json)


def show(result: dict[str, Any]) -> None:
    """The table a person reads."""
    size, rates = result["size"], result["tok/s"]
    print(heading(result))
    print("at best:", ", ".join(f"{v:.0f} {k}" for k, v in result["best"].items()))
    print("{texts:,} texts, {tokens:,} tokens, {cut:,} cut at {limit}".format(**size))
    for name, rate in rates.items():
        gflops = rate["median"] * result["FLOP a token"] / 1e9
        peak = result["best"].get(f"{name.split()[1]} GFLOP/s")
        of_best = f" = {gflops / peak:4.0%}" if peak else ""
        times = rate["median"] / rates[f"{THEIRS} float32"]["median"]
        cosine = result["cosine"][name]
        print(
            f"{name:31} {rate['median']:8.0f} tok/s (best {rate['max']:.0f}, worst {rate['min']:.0f}) "
            f"{gflops:5.0f} GFLOP/s{of_best}   {times:4.2f}x   cosine at least {cosine['min']:.6f}"
        )


if __name__ == "__main__":
    main()
