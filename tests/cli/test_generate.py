"""`qkv generate`: the answer on standard output, everything else beside it."""

import subprocess
import sys
from pathlib import Path

import pytest

import qkv
from tests.cli.conftest import Command, Terminal
from tests.tiny import text_to_text

PROMPT = "The quick brown"


def test_the_answer_alone_is_on_standard_output(command: Command, folder: Path) -> None:
    ran = command("generate", PROMPT, "-m", folder, "--max-tokens", 9)
    expected = qkv.load(folder).generate(PROMPT, max_tokens=9)
    assert (ran.code, ran.out) == (0, expected.text + "\n")
    first, last = ran.err.splitlines()
    assert first.startswith("greedy (default); max_tokens 9 (given)")
    assert last.startswith("9 tokens · ")
    for words in (" tokens/s · ", " GB/s · ", " GB of memory · ", "prompt of "):
        assert words in last


def test_json_holds_the_fields_of_a_generation(command: Command, folder: Path) -> None:
    args = ("generate", "-m", folder, "--max-tokens", 5, "--logprobs", 2, "--temperature", 0.8, "--seed", 7, "--json")
    found = command(*args, stdin=PROMPT + "\n").json
    settings = {"max_tokens": 5, "temperature": 0.8, "seed": 7}
    expected = qkv.load(folder).generate(PROMPT, logprobs=2, **settings)
    assert found["text"] == expected.text
    assert found["tokens"] == expected.tokens
    assert found["prompt_tokens"] == expected.prompt_tokens
    assert found["finish_reason"] == expected.finish_reason
    assert found["logprobs"] == expected.logprobs
    assert [len(row) for row in found["top_logprobs"]] == [2] * 5
    assert found["seed"] == 7
    assert found["timing"]["decode_steps"] == 4
    assert found["dtype"] == "float32"
    assert "temperature 0.8, " not in found["settings"].replace("temperature 0.8 (given)", "")


def test_every_option_reaches_the_settings(command: Command, folder: Path) -> None:
    options = {"temperature": 0.7, "top-k": 9, "top-p": 0.9, "min-p": 0.05, "repetition-penalty": 1.2, "seed": 3}
    options |= {"presence-penalty": 0.5, "frequency-penalty": -0.25}
    args = [part for name, value in options.items() for part in (f"--{name}", value)]
    found = command("generate", PROMPT, "-m", folder, "--json", "--stop", "\n\n", "--stop", "x", *args).json
    for name, value in options.items():
        assert f"{name.replace('-', '_')} {value}" in found["settings"]
    assert r"stop '\n\n', 'x'" in found["settings"]


def test_a_beam_search_prints_what_it_found(command: Command, folder: Path) -> None:
    search = ("generate", PROMPT, "-m", folder, "--max-tokens", 5, "--beams", 4, "--length-penalty", 0.6)
    expected = qkv.load(folder).generate(PROMPT, max_tokens=5, beams=4, n_best=3, length_penalty=0.6)
    ran = command(*search)
    assert (ran.code, ran.out) == (0, expected.text + "\n")
    assert ran.err.startswith("beam search: beams 4, length_penalty 0.6 (given); max_tokens 5")
    several = command(*search, "--n-best", 3)
    assert several.out == "".join(beam.text + "\n" for beam in expected.beams)
    for beam in expected.beams:
        assert f"score {beam.score:.4f}, 5 tokens" in several.err
    found = command(*search, "--n-best", 3, "--early-stopping", "never", "--json").json
    assert len(found["beams"]) == 3
    assert "early_stopping 'never'" in found["settings"]


def test_chat_is_the_template_and_generate_is_not(command: Command, folder: Path) -> None:
    tokenizer = qkv.load(folder).tokenizer
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    args = ("generate", PROMPT, "-m", folder, "--max-tokens", 1, "--json")
    assert command(*args).json["prompt_tokens"] == tokenizer.encode(PROMPT)
    assert command(*args, "--chat").json["prompt_tokens"] == tokenizer.chat(turns[1:])
    assert command(*args, "--chat", "--system", "Be brief.").json["prompt_tokens"] == tokenizer.chat(turns)


def test_dtype_and_threads(command: Command, folder: Path) -> None:
    ran = command("generate", PROMPT, "-m", folder, "--max-tokens", 2, "--dtype", "bfloat16", "--threads", 1, "--json")
    assert ran.json["dtype"] == "bfloat16"


def test_a_terminal_sees_the_prompt_and_no_control_characters(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("NO_COLOR", "1")
    command("generate", PROMPT, "-m", folder, "--max-tokens", 200, "--temperature", 2, "--seed", 1)
    assert err.getvalue().splitlines()[1].startswith(PROMPT)
    shown = set(out.getvalue()) - set("\n\t")
    assert not [c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160]


WRONG = [
    (["--system", "x"], 1, "--system needs --chat"),
    (["--logprobs", "1"], 1, "--logprobs needs --json"),
    (["--temperature", "-1"], 1, "temperature must be 0 (greedy) or a number from 1e-06"),
    (["--temperature", "warm"], 2, "'--temperature'"),
    (["--top-p", "2"], 1, "top_p must be a number from 0 to 1, got 2.0"),
    (["--max-tokens", "0"], 1, "max_tokens must be a whole number from 1"),
    (["--top-k", "5"], 1, "top_k changes nothing while temperature is 0"),
    (["--dtype", "int7"], 1, "dtype 'int7' is not one of"),
    (["--device", "cuda:9"], 1, "device 'cuda:9' can't be used"),
    (["--device", "nonsense"], 1, "device 'nonsense' can't be used"),
    (["--threads", "0"], 2, "'--threads'"),
    (["--beams", "0"], 2, "'--beams'"),
    (["--beams", "2", "--n-best", "3"], 1, "n_best must be at most beams, which is 2, got 3"),
    (["--n-best", "3"], 1, "n_best must be at most beams, which is 1, got 3"),
    (["--beams", "2", "--temperature", "1"], 1, "drawing at temperature 1 (given) at once is not done"),
    (["--beams", "2", "--early-stopping", "yes"], 1, "early_stopping must be True, False or 'never', got 'yes'"),
    (["--length-penalty", "2"], 1, "length_penalty changes nothing while beams is 1"),
    (["--max-token", "3"], 2, "--max-token"),
]


@pytest.mark.parametrize(("args", "code", "message"), WRONG)
def test_wrong_input_is_named(command: Command, folder: Path, args: list[str], code: int, message: str) -> None:
    ran = command("generate", "x", "-m", folder, *args)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert "Traceback" not in ran.err


def test_a_model_or_prompt_that_is_not_there_is_named(command: Command, folder: Path) -> None:
    ran = command("generate", "x", "-m", "./nowhere")
    assert (ran.code, ran.err.splitlines()[0][:36]) == (1, "error: ./nowhere: no such file or fo")
    ran = command("generate", "-m", folder)
    assert (ran.code, ran.err) == (1, "error: no prompt was given: standard input is empty\n")
    ran = command("generate", "x" * 200_000, "-m", folder, "--json")
    assert ran.code == 1
    assert ran.json["error"]["type"] == "InputError"


def test_a_task_or_a_first_token_that_is_not_there(command: Command, folder: Path) -> None:
    for options, said in (
        (("--task", "summarization"), "this model has no task 'summarization': its config.json names none"),
        (("--task", "x", "--chat"), "--task and --chat: choose one"),
        (("--first-token", "de_DE"), "--first-token: this model has no token 'de_DE'"),
    ):
        ran = command("generate", PROMPT, "-m", folder, *options)
        assert ran.code != 0
        assert said in ran.err


def test_text_to_text(command: Command, tmp_path: Path) -> None:
    """A task's prefix and settings, another first token, n-best; all of it survives saving."""
    model = text_to_text()
    saved = qkv.save(model, tmp_path / "t5")
    found = command("generate", "w5 w6", "-m", saved, "--task", "turn", "--json").json
    assert found["prompt_tokens"] == [9, 8, 5, 6, 1]
    assert found["text"] == model.generate("w5 w6", task="turn").text
    found = command("generate", "w5", "-m", saved, "--first-token", "w7", "--max-tokens", 3, "--json").json
    assert found["tokens"][0] == 7
    ran = command("generate", "w5", "-m", saved, "--task", "turn", "--n-best", 2)
    assert ran.code == 0
    assert ran.out.count("\n") == 2  # a line each


def test_which_path_computed_the_steps(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native ones need no word; torch's are told with the reason, or who knows it."""
    args = ("generate", PROMPT, "-m", folder, "--max-tokens", 3)
    assert "steps by" not in command(*args).err
    assert command(*args, "--json").json["timing"]["step"].startswith("native (")
    for why, said in (("it is off", "torch (it is off)"), ("no compiler " * 9, "torch (qkv doctor says why)")):
        monkeypatch.setattr("qkv.nn.native_step.native", lambda: None)
        monkeypatch.setattr("qkv.nn.native_step.reason", lambda why=why: why)
        assert f" · steps by {said}\n" in command(*args).err.replace(" · cut at", "\n")
        assert command(*args, "--json").json["timing"]["step"] == f"torch ({why})"


def test_guesses_change_no_text_and_are_counted(command: Command, folder: Path) -> None:
    args = ("generate", "one two three " * 4, "-m", folder, "--max-tokens", 40)
    plain = command(*args)
    for options in (("--lookup", 4), ("--draft", folder)):
        ran = command(*args, *options)
        assert (ran.code, ran.out) == (0, plain.out)
        found = command(*args, *options, "--json").json
        assert found["tokens"] == command(*args, "--json").json["tokens"]
        timing = found["timing"]
        assert timing["guessed"] > 0
        assert len(found["tokens"]) == 1 + timing["decode_steps"] + timing["accepted"]
        assert f" · {timing['accepted']} of {timing['guessed']} guesses right · " in ran.err
    assert "lookup 4 (given)" in command(*args, "--lookup", 4).err
    assert f"draft: {folder}" in ran.err
    assert found["draft"] == str(folder)
    assert "guesses" not in plain.err
    none = command("generate", "one two", "-m", folder, "--max-tokens", 1, "--lookup", 4)
    assert " · 0 of 0 guesses right · " in none.err


def test_guesses_that_cannot_be_are_refused(command: Command, folder: Path, gguf_file: Path) -> None:
    for options, said in (
        (("--draft", gguf_file), "the draft's tokenizer gives other ids than the model's"),
        (("--draft", "./nowhere"), "./nowhere: no such file"),
        (("--draft", folder, "--lookup", 4), "lookup (given) and a draft both guess what comes: choose one"),
        (("--draft", folder, "--beams", 2), "a search of 2 beams (given) guesses nothing: give beams=1, or no draft"),
        (("--lookup", 4, "--beams", 2), "a search of 2 beams (given) guesses nothing: give beams=1, or no lookup"),
    ):
        ran = command("generate", PROMPT, "-m", folder, *options)
        assert (ran.code, ran.out) == (1, "")
        assert said in ran.err
    assert command("generate", PROMPT, "-m", folder, "--lookup", 0).code == 2


LOADS = """
import gc
from qkv.cli.answer import load
from qkv.errors import NotFound
try:
    load("./nothing", None, None, None)
except NotFound:
    print(gc.isenabled(), gc.get_freeze_count() > 100_000)
frozen = gc.get_freeze_count()
try:
    load("./nothing", None, None, None)
except NotFound:
    print(gc.isenabled(), gc.get_freeze_count() == frozen)
"""


def test_garbage_is_collected_again_once_a_model_is_loaded_or_not() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 4
