"""`qkv generate PROMPT`: continue a text, or with --chat answer it."""

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkv.cli import answer
from qkv.cli.console import DEFAULT_MODEL, JsonOption, ModelOption, note, print_json, read_stdin
from qkv.errors import InputError

if TYPE_CHECKING:
    from qkv.generate.result import Generation
    from qkv.model import Model


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text; standard input if not given.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    chat: Annotated[bool, typer.Option("--chat", help="Answer as in a chat, by the model's own template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt (with --chat).")] = None,
    max_tokens: answer.MaxTokens = None,
    temperature: answer.Temperature = None,
    top_k: answer.TopK = None,
    top_p: answer.TopP = None,
    min_p: answer.MinP = None,
    repetition_penalty: answer.Penalty = None,
    presence_penalty: answer.Presence = None,
    frequency_penalty: answer.Frequency = None,
    seed: answer.Seed = None,
    stop: answer.Stop = None,
    lookup: answer.Lookup = None,
    draft: answer.DraftModel = None,
    beams: answer.Beams = None,
    length_penalty: answer.LengthPenalty = None,
    early_stopping: answer.EarlyStopping = None,
    n_best: answer.NBest = None,
    task: Annotated[
        str | None, typer.Option(help="A task that the model's config names: T5's translation_en_to_de, summarization.")
    ] = None,
    first_token: Annotated[
        str | None, typer.Option(help="Begin the answer with this token: the language of mBART's, as de_DE.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, help="Log-probabilities of the chosen and the N likeliest tokens (with --json)."),
    ] = None,
    dtype: answer.Dtype = None,
    device: answer.Device = None,
    threads: answer.Threads = None,
    json: JsonOption = False,
) -> None:
    """Continue a text, or answer it.

    The text goes to standard output as it comes (of a beam search: once it is found); what was applied, and the speed,
    to standard error. Example:
    qkv generate "How do magnets work?" --chat --temperature 0.7 --top-p 0.9
    """
    if system is not None and not chat:
        raise InputError("--system needs --chat: without a template there is no system prompt")
    if logprobs is not None and not json:
        raise InputError("--logprobs needs --json, which prints them")
    text = read_stdin("prompt") if prompt is None else prompt
    settings = answer.given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop,
        lookup=lookup,
        beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        n_best=n_best,
        logprobs=None if logprobs is None else logprobs or True,
    )
    if task is not None:
        if chat:
            raise InputError("--task and --chat: choose one")
        settings["task"] = task
    loaded = answer.load(model, dtype, device, threads)
    guessing = answer.load_draft(draft, dtype, device)
    if first_token is not None:
        settings["forced_first"] = _id(loaded, first_token)
    system_turn = [{"role": "system", "content": system}] if system is not None else []
    messages = [*system_turn, {"role": "user", "content": text}] if chat else None
    ask: Callable[..., Any] = partial(loaded.chat, messages) if messages else partial(loaded.generate, text)
    ask = partial(ask, draft=guessing, **settings)
    if json:
        _json(loaded, ask(), settings, draft)
        return
    answer.announce(loaded, settings)
    if messages is None and sys.stdout.isatty() and sys.stderr.isatty():
        note(text, end="")
    done: Generation | None
    if loaded.settings(**settings).beams > 1:  # its text is known only at the end
        done = answer.found(ask(), sys.stdout)
    else:
        done = answer.stream(ask(stream=True), sys.stdout)
    if done is not None:
        note(answer.sum_up(done, guesses=guessing is not None or lookup is not None))


def _id(model: "Model", token: str) -> int:
    """A token's id. InputError: there is no such token."""
    id = model.tokenizer.id(token) if model.tokenizer is not None else None
    if id is None:
        raise InputError(f"--first-token: this model has no token {token!r}")
    return id


def _json(loaded: "Model", made: "Generation", settings: dict[str, Any], draft: str | None) -> None:
    about = {
        "model": loaded.source.origin if loaded.source else None,
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }
    applied = {"settings": loaded.settings(**settings).describe(), "draft": draft, "notes": list(loaded.notes)}
    print_json({**made.to_dict(), **about, **applied})
