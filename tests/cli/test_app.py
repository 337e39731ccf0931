"""The command line as a whole: help, versions, exit codes, pipes, signals, and what is never imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qkv
from qkv.cli.app import app
from tests.cli.conftest import Command

VERBS = (
    *("generate", "chat", "serve", "embed", "predict", "train", "show", "diff", "pull", "quantize", "tokenize"),
    *("verify", "doctor", "eval"),
)
LLAMA_70B = Path(__file__).parent.parent / "data" / "llama-2-70b" / "config.json"


def test_help_names_every_verb(command: Command) -> None:
    for args in ((), ("--help",), ("-h",)):
        ran = command(*args)
        assert (ran.code, ran.err) == (0, "")
        assert all(f" {verb} " in ran.out for verb in VERBS)
        assert "org/name[@revision]" in ran.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(command: Command, verb: str) -> None:
    ran = command(verb, "--help")
    assert ran.code == 0
    assert "--json" in ran.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"qkv {qkv.__version__}\n"


WRONG = [
    (["shwo"], "No such command 'shwo'", "see qkv --help"),
    (["show"], "Missing argument 'MODEL'", "see qkv show --help"),
    (["show", "gpt2", "--bacth", "2"], "No such option: --bacth", "see qkv show --help"),
    (["show", "gpt2", "llama"], "unexpected extra argument", "see qkv show --help"),
]


@pytest.mark.parametrize(("args", "message", "help"), WRONG)
def test_wrong_usage_is_exit_code_2_and_says_where_to_look(
    command: Command, args: list[str], message: str, help: str
) -> None:
    ran = command(*args)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.endswith(help + "\n")
    assert message in command(*args, "--json").json["error"]["message"]


def test_json_after_two_dashes_is_an_argument(command: Command) -> None:
    ran = command("show", "--", "--json")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")


def test_what_nobody_expected_keeps_its_traceback(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ref: str) -> None:
        raise ZeroDivisionError(ref)

    monkeypatch.setattr("qkv.cli.known.sketch", broken)
    with pytest.raises(ZeroDivisionError, match="gpt2"):
        command("show", "gpt2")


def test_ctrl_c_is_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(ref: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qkv.cli.known.sketch", stopped)
    assert command("show", "gpt2").code == 130


def test_the_app_has_these_verbs_and_no_others() -> None:
    assert [info.name or info.callback.__name__ for info in app.registered_commands if info.callback] == list(VERBS)


# --- true processes ---


def process(*args: object, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "qkv", *map(str, args)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, text=True, **{**pipes, **options})  # type: ignore[call-overload, no-any-return]


NO_TORCH = """
import sys
from qkv.cli.app import run
codes = [run(line.split("|")) for line in sys.argv[1:]]
print(codes, sorted({"torch", "numpy", "tokenizers", "huggingface_hub"} & set(sys.modules)), file=sys.stderr)
"""


def test_help_and_show_and_diff_import_no_torch() -> None:
    lines = ("--help", "generate|--help", f"show|{LLAMA_70B}", "show|gemma-3-1b|--json", "diff|gpt2|llama-2-7b")
    ran = subprocess.run([sys.executable, "-c", NO_TORCH, *lines], capture_output=True, text=True, check=True)
    assert ran.stderr == "[0, 0, 0, 0, 0] []\n"


def test_tokenize_imports_no_torch(folder: Path) -> None:
    lines = (f"tokenize|hello|-m|{folder}", "pull|--list")
    ran = subprocess.run([sys.executable, "-c", NO_TORCH, *lines], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1].startswith("[0, 0] ")
    assert "torch" not in ran.stderr


def test_a_wrong_number_is_told_before_anything_is_loaded() -> None:
    lines = ("generate|x|--temperature|-1", "chat|--top-p|2", "generate|x|--system|y")
    ran = subprocess.run([sys.executable, "-c", NO_TORCH, *lines], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1] == "[1, 1, 1] []"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with process("show", "gpt2", "--json", stdout=write) as child:
        os.close(write)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (1, "")


def test_output_without_utf8_and_colours_without_a_terminal(folder: Path) -> None:
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with process("diff", "gpt2", "llama-2-7b", env=plain) as child:
        out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert "\x1b" not in out
    assert "4,096 wide" not in out
    assert "11,008 wide" in out


def test_ctrl_c_while_generating_is_130_and_no_traceback(folder: Path, tmp_path: Path) -> None:
    model = qkv.load(folder)
    assert model.tokenizer is not None
    with torch.no_grad():
        model.table[list(model.tokenizer.eos)] = 0  # a score of 0, which is never the best: the answer doesn't end
    endless = qkv.save(model, tmp_path / "endless")
    with process("generate", "The quick", "-m", endless, "--max-tokens", "60000") as child:
        assert child.stdout is not None
        assert child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, f"{len(out)} characters, and {err[-2000:]}"
    assert "Traceback" not in err
