"""What packing costs: perplexity of packed weights on the path that decoding takes, by that of the same numbers plain.

    python -m bench.perplexity --text test.txt.gz [MODEL …] [--to Q4_0 Q8_0 …] [--rows 1 8 512] [--windows 20]

Each MODEL (a GGUF file, a folder that `qkv quantize` wrote; smollm2 if none is given) is loaded twice: dequantized to
float32, and as it is, packed. `--to` packs the first model's dequantized numbers in other formats and measures each
beside its own dequantized numbers: so what is compared is the arithmetic (int8 activations, order of sums), not the
format. The text is cut into windows that the model reads from an empty cache, every token but the first is predicted.
`--rows` R feeds R tokens a step through the cache: 1 is decoding alone, 4 to 16 a batch's kernels, the window's length
prefill. The last column but one is the standard error of the difference: the tokens are the same, so it is far smaller
than the error of a perplexity.
"""

import argparse
import gzip
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.machine import describe, keep, pin
from bench.requantize import TYPES, matrices, requantize
from qkv.generate.step import Reader, new_cache
from qkv.load.gguf import read_gguf
from qkv.load.reference import resolve
from qkv.model import Model, load

LIMIT = 0.005  # of the plain perplexity


def words(path: Path) -> str:
    """A text, unpacked if it is gzip."""
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()


def windows(ids: list[int], length: int, count: int | None) -> list[list[int]]:
    """Pieces of `length` ids side by side, spread over the text if not all are wanted (None)."""
    all_ = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if count is None or count >= len(all_):
        return all_
    return [all_[i * len(all_) // count] for i in range(count)]


def surprise(model: Model, window: list[int], rows: int) -> Tensor:
    """−log p of each token after the first [length − 1], read `rows` at a time; all at once: as a prompt is."""
    read, cache = Reader(model), new_cache(model, [[]], len(window), rows)
    targets, out = torch.tensor(window[1:]), []
    for start in range(0, len(window) - 1, rows):
        chunk = window[start : min(start + rows, len(window) - 1)]
        prompts = [len(chunk)] if rows >= len(window) else None
        logits = read([chunk], cache, [len(chunk)], prompts).float()
        wanted = targets[start : start + len(chunk)]
        out.append(logits.logsumexp(-1) - logits.gather(1, wanted[:, None])[:, 0])
    return torch.cat(out)


def over(model: Model, pieces: list[list[int]], rows: int, what: str) -> Tensor:
    """−log p of all windows [windows, length − 1]."""
    out = []
    for i, piece in enumerate(pieces):
        out.append(surprise(model, piece, rows))
        print(f"\r{what}: {i + 1}/{len(pieces)} windows ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return torch.stack(out).double()


def compare(plain: Tensor, packed: Tensor) -> dict[str, float]:
    """Perplexities, their ratio, and its standard error (from windows: the tokens of one are not independent)."""
    each = (packed - plain).mean(1)
    ratio = math.exp(each.mean().item())
    error = each.std().item() / math.sqrt(len(each)) * ratio if len(each) > 1 else math.nan
    return {
        "plain": math.exp(plain.mean().item()),
        "packed": math.exp(packed.mean().item()),
        "ratio": ratio,
        "error": error,
    }


def measure(ref: str, text: str, args: argparse.Namespace) -> dict[str, Any]:
    """One model, plain and packed. SystemExit: it isn't packed here, or the text is too short."""
    from qkv.nn.packed import Packed

    model = load(ref)
    if not any(isinstance(module, Packed) for module in model.modules()):
        raise SystemExit(f"{ref} holds nothing packed: {'; '.join(model.notes) or 'its weights are plain'}")
    if model.tokenizer is None:
        raise SystemExit(f"{ref} has no tokenizer")
    pieces = windows(list(model.tokenizer.encode(text)), args.length, args.windows)
    if not pieces:
        raise SystemExit(f"the text is shorter than one window of {args.length} tokens")
    packed = {rows: over(model, pieces, rows, f"{ref}, {rows} a step") for rows in args.rows}
    del model
    plain = over(load(ref, "float32"), pieces, args.length, f"{ref}, float32")
    return {"windows": len(pieces), "rows": {rows: compare(plain, found) for rows, found in packed.items()}}


def models(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Names and references; a file made for `--to` is there until the next one is asked for."""
    for ref in args.models:
        yield ref, ref
    if args.to:
        file = read_gguf(resolve(args.models[0]).path)
        for kind in args.to:
            with tempfile.TemporaryDirectory() as folder:
                made = requantize(file, kind, Path(folder) / f"{kind}.gguf")
                yield f"{kind} ({matrices(made)})", str(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2"])
    parser.add_argument("--text", type=Path, required=True, help="plain text, or .gz of it")
    parser.add_argument("--to", nargs="+", choices=TYPES, default=[], help="pack the first model in these too")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 512], help="tokens a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--windows", type=int, help="so many, spread over the text (all, if not given)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    pin(args.threads)
    text, found = words(args.text), dict[str, Any]()
    print(f"{'':34} rows     plain    packed     ratio  ± error  within {LIMIT:.1%}")
    for name, ref in models(args):
        found[name] = measure(ref, text, args)
        for rows, of in found[name]["rows"].items():
            held = "yes" if abs(of["ratio"] - 1) <= LIMIT else "NO"
            said = f"{of['plain']:9.4f} {of['packed']:9.4f} {of['ratio']:9.5f} {of['error']:8.5f}"
            print(f"{name:34} {rows:4} {said}  {held}", flush=True)
    keep({"machine": describe(args.threads), "text": args.text.name, "length": args.length, "models": found}, args.json)


if __name__ == "__main__":
    main()
