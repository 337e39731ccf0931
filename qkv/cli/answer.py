"""What `generate` and `chat` share: their options, loading a model, and printing an answer as it comes."""

import gc
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from qkv.cli.console import DTYPES, note

if TYPE_CHECKING:
    from qkv.generate.result import Generation, Piece
    from qkv.model import Model

MaxTokens = Annotated[int | None, typer.Option(help="At most this many new tokens; 256 if not given.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy: the most likely token each time.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most likely tokens.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the fewest tokens that come to this probability.")]
MinP = Annotated[float | None, typer.Option(help="Draw from tokens at least this likely, beside the likeliest.")]
Penalty = Annotated[float | None, typer.Option(help="Above 1: make what was already said less likely.")]
Presence = Annotated[float | None, typer.Option(help="Taken off the logits of what the answer already has (−2 to 2).")]
Frequency = Annotated[float | None, typer.Option(help="The same, once for each time that the answer has it.")]
Seed = Annotated[int | None, typer.Option(help="Repeat a draw: the same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(help="End at this text. May be given several times.")]
Lookup = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="Guess up to K tokens at once from the text so far (8 is a good number)."),
]
DraftModel = Annotated[
    str | None, typer.Option("--draft", metavar="MODEL", help="Let a smaller model of the same tokenizer guess ahead.")
]
Beams = Annotated[int | None, typer.Option(min=1, help="Search for the likeliest text, this many at a time.")]
LengthPenalty = Annotated[float | None, typer.Option(help="Score of a text found: log-probability / length^this.")]
EarlyStopping = Annotated[
    str | None,
    typer.Option(help="End a search with that many texts at once (true), at no likely gain (false), or never."),
]
NBest = Annotated[int | None, typer.Option(min=1, help="Print this many of the texts that a search found.")]
Dtype = Annotated[str | None, typer.Option(help=f"Hold the weights as {', '.join(DTYPES)}; if not given, as stored.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. The processor if not given.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor cores to use.")]

_LONG = 80  # characters
# What would move the cursor or change the terminal is shown as U+FFFD; a line's end and a tab stay.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd")


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection while torch is imported and the first model loaded, nor of what is there then: it stays to
    the end. (A vocabulary and torch's modules are a million objects, to go through which takes 0.1 s each time.)"""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@_uncollected()
def load(ref: str, dtype: str | None, device: str | None, threads: int | None, **options: Any) -> "Model":
    """The model, ready to answer; `options` go to `qkv.load`. Raises as that, and InputError: no such device."""
    # GNU OpenMP reads this when torch is imported. Its threads wait for each other by spinning, which slows a decode of
    # 16 tokens/s to between 0.5 and 5 once another process wants a core; so it stays near 9. On idle cores it costs
    # 5 to 10 % (few runs: LOG.md, 2026-11-22).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    from qkv.errors import InputError
    from qkv.model import load as load_model

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    return load_model(ref, dtype=dtype, device=device, progress=True, **options)


def load_draft(ref: str | None, dtype: str | None, device: str | None) -> "Model | None":
    """The model that guesses ahead, if one was named, and a dim line that says so. Raises as `load`."""
    if ref is None:
        return None
    draft = load(ref, dtype, device, None)
    note(f"draft: {draft.source.origin if draft.source else ref}")
    return draft


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, as `generate` takes them. InputError for a wrong one, before a model is loaded."""
    from qkv.generate.settings import Settings

    settings = {name: value for name, value in options.items() if value not in (None, [])}
    if "early_stopping" in settings:
        said = settings["early_stopping"]
        settings["early_stopping"] = {"true": True, "false": False}.get(said, said)
    # The model's own beams may be enough for n_best.
    Settings(**{name: value for name, value in settings.items() if name != "n_best" or "beams" in settings})
    return settings


def announce(model: "Model", settings: dict[str, Any]) -> None:
    """Notes on the model and what is in force, each a dim line."""
    for text in model.notes:
        note(text)
    note(model.settings(**settings).describe())


def stream(pieces: "Iterable[Piece]", file: TextIO) -> "Generation | None":
    """Print an answer piece by piece, and end its line even where Ctrl-C breaks it off (KeyboardInterrupt)."""
    terminal = file.isatty()
    generation = None
    try:
        for piece in pieces:
            file.write(piece.translate(CONTROLS) if terminal else piece)
            file.flush()
            generation = piece.generation
    finally:
        file.write("\n")
        file.flush()
    return generation


def found(generation: "Generation", file: TextIO) -> "Generation":
    """Print what a beam search found, best first; where these are several, with the scores as dim lines before each."""
    beams = generation.beams or []
    for beam in beams:
        if len(beams) > 1:
            note(f"score {beam.score:.4f}, {len(beam.tokens)} tokens")
        _write(beam.text + "\n", file)
    return generation


def _write(text: str, file: TextIO) -> None:
    file.write(text.translate(CONTROLS) if file.isatty() else text)
    file.flush()


def sum_up(generation: "Generation", guesses: bool = False) -> str:
    """The last line: tokens, tokens/s, GB/s, guesses (where there were or could be any), memory; and why steps were
    torch's, where they were."""
    timing = generation.timing
    parts = [f"{len(generation.tokens)} tokens"]
    if timing.tokens_per_second is not None and timing.gigabytes_per_second is not None:
        parts += [f"{timing.tokens_per_second:.1f} tokens/s", f"{timing.gigabytes_per_second:.1f} GB/s"]
    if timing.guessed or guesses:
        parts.append(f"{timing.accepted} of {timing.guessed} guesses right")
    if timing.peak_memory is not None:
        parts.append(f"{timing.peak_memory / 1e9:.2f} GB of memory")
    parts.append(f"prompt of {timing.prompt_tokens} in {timing.prefill_seconds:.2f} s")
    if timing.step.startswith("torch"):  # a longer reason, as without a compiler, is the doctor's
        parts.append(f"steps by {timing.step if len(timing.step) < _LONG else 'torch (qkv doctor says why)'}")
    if generation.seed is not None:
        parts.append(f"seed {generation.seed}")
    if generation.finish_reason == "length":
        parts.append("cut at max_tokens or the context's end")
    return " · ".join(parts)
