"""L16: a hostile tokenizer.json is refused, or its texts take bounded time; the error names the field."""

import base64
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from qkv.errors import NotFound, TokenizerError
from qkv.inputs import guard
from qkv.inputs.backend import Isolated
from qkv.inputs.regexes import KNOWN
from qkv.inputs.text import Tokenizer

GOOD: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 3,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "unk_token": "a"},
}


def changed(**paths: object) -> dict[str, Any]:
    """GOOD with values at paths, `a__b` for data["a"]["b"]."""
    data = copy.deepcopy(GOOD)
    for path, value in paths.items():
        *parents, last = path.split("__")
        at = data
        for parent in parents:
            at = at[parent]
        at[last] = value
    return data


def save(folder: Path, data: object) -> Path:
    (folder / "tokenizer.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return folder


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


REFUSED = {
    "not an object": ("[1]", "must be a JSON object, and is list"),
    "not JSON": ("{", "not valid JSON"),
    "key twice": ('{"model": {}, "model": {}}', "'model' appears 2 times"),
    "nested": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested more than 64 levels"),
    "nested part": (changed(pre_tokenizer=json.loads('{"a":' * 200 + "1" + "}" * 200)), "nested more than 64 levels"),
    "no model": (changed(model=None), "model is missing"),
    "unknown model": (changed(model__type="Neural"), r"model\.type is 'Neural'"),
    "no vocab": (changed(model__vocab=3), r"model\.vocab is missing"),
    "id 1e8": (changed(model__vocab={"a": 10**8}), r"model\.vocab\['a'\] is 100000000"),
    "negative id": (changed(model__vocab={"a": -1}), r"model\.vocab\['a'\] is -1"),
    "boolean id": (changed(model__vocab={"a": True}), r"model\.vocab\['a'\] is True"),
    "text id": (changed(model__vocab={"a": "0"}), r"model\.vocab\['a'\] is 0"),
    "same id": (changed(model__vocab={"a": 0, "b": 0, "ab": 1}), "'a' and 'b' the same id 0"),
    "gap": (changed(model__vocab={"a": 0, "b": 1, "ab": 3_000_000}), "ids up to 3,000,000"),
    "merge of unknown": (changed(model__merges=[["a", "c"]]), "`c` out of vocabulary"),
    "merges of another type": (changed(model__merges={"a": "b"}), r"model\.merges is not a list"),
    "unigram entry": (
        changed(model__type="Unigram", model__vocab=[["a", 0.0], ["b"]]),
        r"model\.vocab\[1\] is \['b'\]",
    ),
    "unigram score": (changed(model__type="Unigram", model__vocab=[["a", float("nan")]]), "NaN is not a JSON number"),
    "huge score": (changed(model__type="Unigram", model__vocab=[["a", -(10**400)]]), "number out of range"),
    "added content": (changed(added_tokens=[{"id": 3}]), r"added_tokens\[0\]\.content"),
    "added id": (
        changed(added_tokens=[GOOD["added_tokens"][0] | {"id": 2**31}]),
        r"added_tokens\[0\]\.id is 2147483648",
    ),
    "added elsewhere": (changed(added_tokens=[GOOD["added_tokens"][0] | {"id": 5}]), r"added_tokens\[0\]\.id is 5"),
    "added not a list": (changed(added_tokens={"a": 1}), "added_tokens is not a list"),
    "decoder regex": (changed(decoder=replace({"Regex": "(a|a)*$"}, "")), r"decoder\.pattern\.Regex is '\(a\|a\)"),
    "decoder growth": (changed(decoder=replace({"String": "a"}, "a" * 10**6)), r"decoder\.content has more than 16"),
    "frame id": (
        changed(post_processor={"type": "BertProcessing", "sep": ["x", 99], "cls": ["a", 0]}),
        "post_processor adds the id 99",
    ),
    "frame length": (
        changed(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "a", "type_id": 0}}] * 1000,
                "pair": [],
                "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}},
            }
        ),
        r"post_processor\.single has 1,000 parts",
    ),
    "unknown part": (changed(pre_tokenizer={"type": "Shell"}), "tokenizer.json"),
    "lone surrogate": (changed(decoder={"type": "BPEDecoder", "suffix": "\ud800"}), "tokenizer.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_l16_refused_with_the_field(name: str, tmp_path: Path) -> None:
    data, message = REFUSED[name]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(save(tmp_path, data))


def test_l16_a_huge_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_IDS", 100)
    with pytest.raises(TokenizerError, match=r"model\.vocab has 101 tokens; the limit is 100"):
        guard.check(changed(model__vocab=[["a", 0.0]] * 101), "x")
    with pytest.raises(TokenizerError, match=r"is 100; ids are integers from 0 to 99"):
        guard.check(changed(model__vocab={str(i): i for i in range(101)}), "x")


def test_l16_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(TokenizerError, match="1,000,000,000,000 bytes"):
        Tokenizer.from_folder(tmp_path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="save_pretrained"):
        Tokenizer.from_folder(tmp_path)


def charsmap(replacement: bytes) -> str:
    return base64.b64encode(b"\0\0\0\0" + replacement + b"\0").decode()


TEXT = "a" * 100_000 + "b"
SLOW = {
    "(a+)+": changed(pre_tokenizer=split("(a+)+$")),
    "(a|a)*": changed(normalizer=replace({"Regex": "(a|a)*$"}, "")),
    "quadratic": changed(pre_tokenizer=split("a+c")),
    "quadratic, deep inside": changed(pre_tokenizer={"type": "Sequence", "pretokenizers": [split("a+c")]}),
    "growth": changed(normalizer=replace({"String": "a"}, "a" * 10**6)),
    "growth in steps": changed(normalizer={"type": "Sequence", "normalizers": [replace({"String": "a"}, "aaaa")] * 30}),
    "long words": changed(
        model={
            "type": "WordPiece",
            "vocab": {"x": 0, "a": 1, "##a": 2},
            "unk_token": "x",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**9,
        }
    ),
    "long pieces": changed(
        model={"type": "Unigram", "vocab": [["a" * n, -1.0] for n in range(1, 3000)] + [["b", -1.0]], "unk_id": 0},
        added_tokens=[],
    ),
}


@pytest.mark.parametrize("name", SLOW)
def test_l16_100_kb_take_less_than_2_s(name: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(save(tmp_path, SLOW[name]))
    assert isinstance(tokenizer._backend, Isolated)
    tokenizer.encode("b")  # starts the worker
    begin = time.monotonic()
    with pytest.raises(TokenizerError, match=r"normalizer|pre_tokenizer|model|retry-limit"):
        tokenizer.encode(TEXT)
    assert time.monotonic() - begin < 2
    assert len(tokenizer.encode("b")) > 0


def test_a_harmless_regex_works_apart_and_here(tmp_path: Path) -> None:
    folder = save(tmp_path, changed(pre_tokenizer=split("[b-z]")))
    apart, here = Tokenizer.from_folder(folder), Tokenizer.from_folder(folder, trust=True)
    assert isinstance(apart._backend, Isolated)
    assert not isinstance(here._backend, Isolated)
    assert apart.encode("abba") == here.encode("abba") == [0, 1, 1, 0]
    assert apart.decode([2, 3, 1]) == "abb"
    apart.save(tmp_path / "copy")
    assert Tokenizer.from_folder(tmp_path / "copy").encode("abba") == [0, 1, 1, 0]


def test_what_the_charsmap_can_do_is_read_from_it() -> None:
    small, large = ({"type": "Precompiled", "precompiled_charsmap": charsmap(b"x" * n)} for n in (18, 1000))
    assert guard.reasons(changed(normalizer=small)) == []
    assert "1,000 times longer" in guard.reasons(changed(normalizer=large))[0]
    assert guard.reasons(changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "?"})) != []


WORST = ["a", "A", " ", "\n", "1", "!", "一", "\u0301", "'", "aA", " \n", "a1", "'s", " !", "A\u0301", "/", "<|", "\r"]


@pytest.mark.parametrize("regex", sorted(KNOWN))
def test_known_regexes_take_time_linear_in_the_text(regex: str) -> None:
    cut = pre_tokenizers.Split(Regex(regex), "isolated")

    def seconds(unit: str, length: int) -> float:
        """The best of three; a crowded machine slows some runs, never all of them to a square."""
        text, best = (unit * length)[:length] + "a!\n", math.inf
        for _ in range(3):
            begin = time.process_time()
            cut.pre_tokenize_str(text)
            best = min(best, time.process_time() - begin)
        return best

    for unit in WORST:
        assert seconds(unit, 20_000) < 10 * seconds(unit, 5_000) + 0.1  # linear: 4 times; a square: 16 times, and 2 s


parts = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10) | st.text(max_size=3) | st.just("a"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, *GOOD["model"], "type"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(path=st.sampled_from([*GOOD, *(f"model__{key}" for key in GOOD["model"])]), value=parts)
def test_any_other_value_is_taken_or_refused(
    path: str, value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = save(tmp_path_factory.mktemp("fuzz"), changed(**{path: value}))
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except TokenizerError:
        return
    assert tokenizer.decode([0]) is not None


def test_real_looking_files_run_here(tmp_path: Path) -> None:
    raw = library.Tokenizer.from_str(json.dumps(GOOD))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel()
    raw.save(str(tmp_path / "tokenizer.json"))
    assert not isinstance(Tokenizer.from_folder(tmp_path)._backend, Isolated)
