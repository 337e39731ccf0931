"""`qkv chat`: a conversation, typed or piped in (one turn a line). Ctrl-C stops the answer, not the program."""

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from qkv.cli import answer
from qkv.cli.console import DEFAULT_MODEL, JsonOption, ModelOption, fail, note, print_json
from qkv.errors import InputError, QkvError

if TYPE_CHECKING:
    from qkv.cli.talk import Talk

FENCE = '"""'
HELP = f"""/reset         forget the conversation
/system TEXT   start again with another system prompt (without TEXT: with none)
/save FILE     write the conversation as JSON
/quit          leave (so does Ctrl-D)
{FENCE}            alone on a line: begin and end a message of several lines
Ctrl-C         stop the answer; what was said so far stays"""


def chat(
    model: ModelOption = DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
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
    dtype: answer.Dtype = None,
    device: answer.Device = None,
    threads: answer.Threads = None,
    json: JsonOption = False,
) -> None:
    """Talk with a model.

    Inside, /help lists what can be done; Ctrl-C stops an answer, Ctrl-D leaves. Piped in, each line is a turn. With
    --json the whole conversation is printed at the end.
    """
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
    )
    loaded = answer.load(model, dtype, device, threads)
    guessing = answer.load_draft(draft, dtype, device)
    from qkv.cli.talk import Talk

    talk = Talk(loaded, settings, system, guessing)
    answer.announce(loaded, settings)
    if sys.stdin.isatty():
        with suppress(ImportError):  # Windows has its own
            import readline  # noqa: F401  (gives input() its history and editing)
        note("/help lists what can be done here, Ctrl-D leaves")
    while _turn(talk, quiet=json):
        pass
    if json:
        print_json(talk.to_dict())


def _turn(talk: "Talk", *, quiet: bool) -> bool:
    """Read one message and answer it; False at the end. Where a person types, an error ends the turn and no more."""
    typed = sys.stdin.isatty()
    try:
        text = _message()
        if text is None:
            return False
        if text.startswith("/"):
            return _command(text, talk)
        if text.strip():
            _answer(talk, text, quiet)
    except KeyboardInterrupt:
        if not typed:
            raise
        note("stopped (Ctrl-D leaves)")
    except QkvError as error:
        if not typed:
            raise
        fail(error, as_json=False)
    return True


def _message() -> str | None:
    """The next message; None: there is none."""
    line = _line("> ")
    if line is None or line.strip() != FENCE:
        return line
    lines: list[str] = []
    while (line := _line("… ")) is not None and line.strip() != FENCE:
        lines.append(line)
    return "\n".join(lines)


def _line(prompt: str) -> str | None:
    try:
        if not sys.stdin.isatty():
            prompt = ""
        elif not sys.stdout.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
            prompt = ""
        return input(prompt)
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte {error.start})") from error


def _command(text: str, talk: "Talk") -> bool:
    """Do what a line with a slash says; False: leave."""
    word, _, rest = text.partition(" ")
    match word:
        case "/quit" | "/exit" | "/bye":
            return False
        case "/reset":
            talk.start(talk.system)
            note("forgotten")
        case "/system":
            talk.start(rest.strip() or None)
            note("started again")
        case "/save" if rest.strip():
            talk.save(rest.strip())
            note(f"saved to {rest.strip()}")
        case "/help":
            note(HELP)
        case _:
            raise InputError(
                f"there is no {text!r} here (/help lists what there is); a space before it makes it a message"
            )
    return True


def _answer(talk: "Talk", text: str, quiet: bool) -> None:
    with closing(talk.ask(text)) as pieces:
        done = answer.stream(pieces, sys.stderr if quiet else sys.stdout)
    if done is not None:
        note(answer.sum_up(done, guesses=talk.guesser is not None or bool(talk.settings.lookup)))
