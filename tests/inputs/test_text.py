"""A saved tokenizer is the same one in transformers: ids, text and chats. Wrong arguments are named."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers, processors

from qkv.errors import InputError, TokenizerError
from qkv.inputs.text import Tokenizer
from tests.inputs.samples import CHATML, KINDS, TEXTS, any_text

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi  there 😀\n"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
    {"role": "user", "content": "ok"},
]


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_save_writes(kind: str, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers[kind]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # a family whose own class would rebuild it
    tokenizer.save(tmp_path)
    reference, again = theirs(tmp_path), Tokenizer.from_folder(tmp_path)
    texts = [*TEXTS, "a </s> b", "[SEP]"] if kind != "sentencepiece" else TEXTS
    for text in texts:
        ids = tokenizer.encode(text)
        assert again.encode(text) == ids
        if not set(reference.tokenize(text)) & set(tokenizer.specials) - {reference.unk_token}:
            assert reference.encode(text, split_special_tokens=True) == ids
        for skip in (True, False):
            assert reference.decode(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip_special=skip)
    assert (again.bos, again.eos, again.pad, again.unk) == (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk)
    assert (again.cls, again.sep, again.mask) == (tokenizer.cls, tokenizer.sep, tokenizer.mask)
    assert again.vocab_size == tokenizer.vocab_size == len(reference)
    assert again.specials == tokenizer.specials
    assert reference.all_special_tokens == list(
        dict.fromkeys(t for t in reference.special_tokens_map.values() if t in tokenizer.specials)
    )


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_chats_are_those_of_transformers(kind: str, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path)
    reference = theirs(tmp_path)
    for prompt in (True, False):
        text = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompt)
        ids = reference.apply_chat_template(MESSAGES, add_generation_prompt=prompt, return_dict=False)
        assert tokenizer.render_chat(MESSAGES, add_generation_prompt=prompt) == text
        assert tokenizer.chat(MESSAGES, add_generation_prompt=prompt) == ids


@given(text=any_text)
def test_byte_level_text_comes_back_whole(text: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "", text]) == [tokenizer.encode(text), [], tokenizer.encode(text)]


def small(**config: object) -> tuple[library.Tokenizer, dict[str, object]]:
    raw = library.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "<s>": 2, "</s>": 3}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return raw, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}


CONFIGS: dict[str, dict[str, object]] = {
    "as it is": {},
    "BOS": {"add_bos_token": True},
    "BOS and EOS": {"add_bos_token": True, "add_eos_token": True},
    "neither": {"add_bos_token": False, "add_eos_token": None},
    "EOS without a token": {"add_eos_token": True, "eos_token": None},
    "dict": {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False}},
    "a new token": {"pad_token": "[PAD]", "mask_token": "[MASK]"},
    "a word made special": {"pad_token": "a"},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("framed", [True, False])
def test_the_config_means_what_it_means_in_transformers(name: str, framed: bool, tmp_path: Path) -> None:
    raw, config = small(**CONFIGS[name])
    if framed:
        raw.post_processor = processors.BertProcessing(("</s>", 3), ("<s>", 2))
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, reference = Tokenizer.from_folder(tmp_path), theirs(tmp_path)
    for text in ("", "a", "a b a"):
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.encode(text, special=False) == reference.encode(text, add_special_tokens=False)
    assert tokenizer.bos == reference.bos_token_id
    assert tokenizer.eos == (() if reference.eos_token_id is None else (reference.eos_token_id,))
    assert (tokenizer.pad, tokenizer.mask) == (reference.pad_token_id, reference.mask_token_id)
    assert tokenizer.decode([1, 2, 0]) == reference.decode([1, 2, 0], skip_special_tokens=True)


TEMPLATES: dict[str, tuple[dict[str, object], dict[str, str], dict[str, str]]] = {
    "in the config": ({"chat_template": "x"}, {}, {"default": "x"}),
    "named": (
        {"chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]},
        {},
        {"default": "x", "tool_use": "y"},
    ),
    "file": ({"chat_template": "x"}, {"chat_template.jinja": "é"}, {"default": "é"}),
    "files": (
        {},
        {"chat_template.jinja": "x", "additional_chat_templates/rag.jinja": "y"},
        {"default": "x", "rag": "y"},
    ),
    "none": ({}, {}, {}),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_found_and_kept(name: str, tmp_path: Path) -> None:
    config, files, found = TEMPLATES[name]
    raw, more = small(**config)
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "additional_chat_templates").mkdir(parents=True)
    raw.save(str(first / "tokenizer.json"))
    (first / "tokenizer_config.json").write_text(json.dumps(more))
    for file, text in files.items():
        (first / file).write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.from_folder(first)
    assert tokenizer.chat_templates == found
    (second / "additional_chat_templates").mkdir(parents=True)
    (second / "chat_template.jinja").write_text("of an earlier save")
    (second / "additional_chat_templates/old.jinja").write_text("of an earlier save")
    tokenizer.save(second)
    assert Tokenizer.from_folder(second).chat_templates == found
    kept = theirs(second).chat_template
    assert kept == (found.get("default") if len(found) < 2 else found)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token is 3, not a token"),
        ("tokenizer_config.json", '{"eos_token": {"content": ""}}', "eos_token is .*, not a token"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "chat_template is no template"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: must be a JSON object, and is list"),
        ("special_tokens_map.json", '{"a": NaN', "special_tokens_map.json: not valid JSON"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja isn't UTF-8"),
    ],
)
def test_a_broken_companion_is_named(file: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    small()[0].save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_a_template_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    tokenizer = Tokenizer(small()[0], chat_template={"../../x": "y"})
    with pytest.raises(TokenizerError, match=r"\.\./\.\./x"):
        tokenizer.save(tmp_path)


def test_tokens_and_ids(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = Tokenizer(small()[0], bos="<s>", eos=["</s>", 1], pad=3)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) == (2, (3, 1), 3, None)
    assert tokenizer.specials == {"<s>": 2, "</s>": 3, "a": 1}
    assert (tokenizer.token(0), tokenizer.id("a"), tokenizer.id("b")) == ("[UNK]", 1, None)
    with pytest.raises(TokenizerError, match="the eos token is '<eos>', which the vocabulary doesn't have"):
        Tokenizer(small()[0], eos="<eos>")
    with pytest.raises(TokenizerError, match="the bos token is 4"):
        Tokenizer(small()[0], bos=4)


def test_ids_without_a_token(tokenizers: dict[str, Tokenizer]) -> None:
    raw = library.Tokenizer(models.WordLevel({"a": 0, "b": 5}, unk_token=""))
    tokenizer = Tokenizer(raw)
    assert tokenizer.vocab_size == 6
    for id in (3, 6, -1, 2**32, 2**70):
        with pytest.raises(InputError, match=f"no token has the id {id}; ids are 0 to 5"):
            tokenizer.decode([0, id])


def test_two_that_give_the_same_ids(tokenizers: dict[str, Tokenizer]) -> None:
    for name, one in tokenizers.items():
        assert [other for other, two in tokenizers.items() if one.same_ids(two)] == [name]


def test_check_rows(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    tokenizer.check_rows(400)
    tokenizer.check_rows(512)
    with pytest.raises(TokenizerError, match=r"ids up to 399 \('.+'\) and the embedding 399 rows"):
        tokenizer.check_rows(399)


def test_input_that_is_no_text(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    assert tokenizer.encode("", special=False) == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"
    assert tokenizer.encode_batch([]) == []
    with pytest.raises(InputError, match="lone surrogate"):
        tokenizer.encode("\ud83d")
    with pytest.raises(InputError, match="must be a string, got int"):
        tokenizer.encode(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="takes a list"):
        tokenizer.encode_batch("abc")


def test_truncation_and_padding_of_a_file_do_not_apply(tmp_path: Path) -> None:
    """sentence-transformers' files have both; cutting a text unasked is a silent wrong answer."""
    raw, _ = small()
    raw.enable_truncation(2)
    raw.enable_padding(length=8)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path).encode("a a a a") == [1, 1, 1, 1]


def test_a_megabyte(tokenizers: dict[str, Tokenizer]) -> None:
    text = "The quick brown fox, 12345 times. " * 30_000
    ids = tokenizers["bpe"].encode(text)
    assert tokenizers["bpe"].decode(ids) == text


@given(st.lists(st.integers(0, 399), max_size=20))
def test_decode_is_the_librarys(tokenizers: dict[str, Tokenizer], ids: list[int]) -> None:
    raw = library.Tokenizer.from_str(tokenizers["bpe"]._raw.to_str())
    assert tokenizers["bpe"].decode(ids) == raw.decode(ids)


def test_a_named_token_is_special_whatever_tokenizer_json_says(tmp_path: Path) -> None:
    raw, config = small(eos_token="<end>")
    raw.add_tokens(["<end>"])
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos == (4,)
    assert 4 not in tokenizer.encode("a <end>")
    assert tokenizer.decode([1, 4]) == "a"


def test_an_older_folders_map_overrules_its_config(tmp_path: Path) -> None:
    raw, config = small(eos_token="a")
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    assert Tokenizer.from_folder(tmp_path).eos == (theirs(tmp_path).eos_token_id,) == (3,)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": {}}))
    assert Tokenizer.from_folder(tmp_path).eos == (theirs(tmp_path).eos_token_id,) == (1,)


@pytest.mark.parametrize("segments", [False, True])
def test_transformers_gets_token_types_for_a_model_that_reads_them(
    segments: bool, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    tokenizer = tokenizers["wordpiece"]
    tokenizer.save(tmp_path, segments=segments)
    got = theirs(tmp_path)("one", "two")
    assert got.get("token_type_ids") == (tokenizer.encode_with_offsets("one", "two").segments if segments else None)


def test_a_special_token_keeps_its_flags(tmp_path: Path) -> None:
    raw, _ = small()
    raw.add_special_tokens([AddedToken("<x>", rstrip=True, normalized=False)])
    tokenizer = Tokenizer(raw, eos="<x>", chat_template="<x>  a<x>" + CHATML.replace("\n", " "))
    tokenizer.save(tmp_path)
    again = Tokenizer.from_folder(tmp_path)
    messages = [{"role": "user", "content": "a"}]
    assert again.chat(messages)[:3] == tokenizer.chat(messages)[:3] == [4, 1, 4]
