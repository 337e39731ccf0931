"""The application: which verbs there are, and what becomes of errors. A verb's own file imports what it needs when it
runs, so `qkv --help` costs typer and nothing else.

Exit codes: 0 done, 1 an error that was named (or nobody reads the output any more), 2 wrong usage, 130 Ctrl-C. What
nobody expected keeps its traceback. `train` has one more, which its help says.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from qkv.cli.chat import chat
from qkv.cli.console import fail, note
from qkv.cli.diff import diff
from qkv.cli.doctor import doctor
from qkv.cli.embed import embed
from qkv.cli.evaluate import evaluate
from qkv.cli.generate import generate
from qkv.cli.predict import predict
from qkv.cli.pull import pull
from qkv.cli.quantize import quantize
from qkv.cli.serve import serve
from qkv.cli.show import show
from qkv.cli.tokenize import tokenize
from qkv.cli.train import train
from qkv.cli.verify import verify
from qkv.errors import QkvError

app = typer.Typer(
    name="qkv",
    help="Every Transformer from one block: load it, run it, look inside.",
    epilog="A model is an alias (smollm2), a folder, a .gguf or .safetensors file, or org/name[@revision]. "
    'Begin with: qkv generate "The capital of France is"',
    add_completion=False,
    rich_markup_mode=None,  # rich's help takes twice as long to come
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (generate, chat, serve, embed, predict, train, show, diff, pull, quantize, tokenize, verify, doctor):
    app.command()(verb)
app.command("eval")(evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        from qkv import __version__

        print(f"qkv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line (None: sys.argv's) and return its exit code."""
    args = list(sys.argv[1:] if args is None else args)
    options = args[: args.index("--")] if "--" in args else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    try:
        code = app(args or ["--help"], prog_name="qkv", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # What is still buffered must not fail once more when Python exits (docs.python.org, "Note on SIGPIPE").
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except QkvError as error:
        fail(error, as_json="--json" in options)
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's usage errors, whose class has moved between versions
            raise
        fail(error, as_json="--json" in options)
        context = getattr(error, "ctx", None)
        note(f"see {context.command_path if context else 'qkv'} --help")
        return 2
