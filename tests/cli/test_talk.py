"""A conversation: its messages, and that a cache kept between turns changes no answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qkv
from qkv.cli.talk import Talk
from qkv.errors import InputError, TemplateError, TokenizerError
from qkv.generate.result import Piece

TURNS = ["The quick brown fox", "one two three", "日本語"]


@pytest.fixture
def talk(folder: Path) -> Talk:
    return Talk(qkv.load(folder), {"max_tokens": 6, "repetition_penalty": 1.3})


def test_each_answer_is_what_the_whole_conversation_gives(talk: Talk) -> None:
    read = []
    for turn in TURNS:
        before = [*talk.messages, {"role": "user", "content": turn}]
        answer = "".join(talk.ask(turn))
        made = talk.generations[-1]
        fresh = talk.model.chat(before, max_tokens=6, repetition_penalty=1.3)
        assert (answer, made.tokens, made.prompt_tokens) == (fresh.text, fresh.tokens, fresh.prompt_tokens)
        assert talk.messages == [*before, {"role": "assistant", "content": answer}]
        read.append((made.timing.prompt_tokens, len(made.prompt_tokens)))
    assert read[0][0] == read[0][1]


def test_a_turn_reads_only_what_is_new(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the template gives back the very ids that the model chose."""
    list(talk.ask(TURNS[0]))
    first = talk.generations[-1]
    again = [*first.prompt_tokens, *first.tokens, 5, 6, 7]
    monkeypatch.setattr(talk.tokenizer, "chat", lambda messages: again)
    list(talk.ask("more"))
    second = talk.generations[-1]
    assert second.prompt_tokens == again
    assert second.timing.prompt_tokens == 4  # the last token chosen had not been read
    assert second.tokens == talk.model.generate(again, max_tokens=6, repetition_penalty=1.3).tokens


def test_an_answer_broken_off_stays_and_its_cache_does_not(talk: Talk) -> None:
    list(talk.ask(TURNS[0]))
    pieces = talk.ask(TURNS[1])
    said = next(pieces) + next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": str(said)}
    assert len(talk.generations) == 1
    before = [*talk.messages, {"role": "user", "content": TURNS[2]}]
    assert "".join(talk.ask(TURNS[2])) == talk.model.chat(before, max_tokens=6, repetition_penalty=1.3).text


def test_a_turn_without_an_answer_is_none(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Iterator[Piece]:
        yield Piece("", 0, [5])
        raise KeyboardInterrupt

    monkeypatch.setattr("qkv.cli.talk.generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talk.ask("x"))
    assert talk.messages == []
    monkeypatch.undo()
    with pytest.raises(InputError, match="65536"):
        list(talk.ask("x " * 70_000))
    assert talk.messages == []


def test_system_prompts_and_starting_anew(talk: Talk) -> None:
    talk.start("Be brief.")
    list(talk.ask("x"))
    assert (talk.system, len(talk.messages)) == ("Be brief.", 3)
    talk.start(None)
    assert (talk.system, talk.messages) == (None, [])


def test_a_conversation_is_saved_and_nothing_overwritten(talk: Talk, tmp_path: Path) -> None:
    list(talk.ask("x"))
    path = tmp_path / "talk.json"
    talk.save(str(path))
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(talk.to_dict()))
    with pytest.raises(InputError, match="is there already"):
        talk.save(str(path))
    with pytest.raises(InputError, match="No such file or directory"):
        talk.save(str(tmp_path / "no" / "talk.json"))


def test_what_cannot_chat_says_so_at_once(folder: Path) -> None:
    model = qkv.load(folder)
    model.tokenizer.chat_templates = {"default": "{{ raise_exception('no system') if messages[0].role == 'system' }}"}
    with pytest.raises(TemplateError, match="no system"):
        Talk(model, {}, "Be brief.")
    model.tokenizer.chat_templates = {}
    with pytest.raises(TokenizerError, match="no chat template"):
        Talk(model, {})
    model.tokenizer = None
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Talk(model, {})


def test_guesses_change_no_answer(talk: Talk, folder: Path) -> None:
    plain = ["".join(talk.ask(turn)) for turn in TURNS]
    drafted = Talk(talk.model, {"max_tokens": 6, "repetition_penalty": 1.3}, draft=qkv.load(folder))
    assert ["".join(drafted.ask(turn)) for turn in TURNS] == plain
    looked = Talk(talk.model, {"max_tokens": 6, "repetition_penalty": 1.3, "lookup": 3})
    assert ["".join(looked.ask(turn)) for turn in TURNS] == plain
    with pytest.raises(InputError, match="choose one"):
        Talk(talk.model, {"lookup": True}, draft=talk.model)
