"""A GGUF file's metadata gives the ids of transformers' GGUF reader; where they differ on purpose, a test says so."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st

from qkv.errors import TokenizerError
from qkv.inputs.gguf_tokenizer import build
from qkv.inputs.regexes import GGUF_PRE
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from tests.inputs.samples import CHATML, CORPUS, TEXTS, sentencepiece

MESSAGES = [{"role": "user", "content": "the cat <s> 12"}, {"role": "assistant", "content": "is"}]


def byte_level(**changes: object) -> dict[str, Any]:
    """A trained byte-level BPE as GGUF metadata."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    model = train_tokenizer(CORPUS, "bpe", 420, special_tokens=special)._raw
    tokens = [model.id_to_token(id) for id in range(420)]
    types = [3, 3, 3, 4] + [1] * 416
    merges = [" ".join(pair) for pair in json.loads(model.to_str())["model"]["merges"]]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHATML,
        **changes,
    }


def theirs(metadata: dict[str, Any], folder: Path) -> Any:
    """What transformers makes of the same metadata in a file."""
    from transformers import AutoTokenizer

    architecture = metadata["general.architecture"]
    writer = gguf.GGUFWriter(folder / "tiny.gguf", architecture)
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{architecture}.{name}", 8)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif key != "general.architecture":
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
            add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")


def gemma() -> dict[str, Any]:
    metadata = sentencepiece(**{"general.architecture": "gemma2", "tokenizer.ggml.add_space_prefix": False})
    tokens = metadata["tokenizer.ggml.tokens"]
    for run in ("▁▁", "▁▁▁▁"):  # Gemma's writer spells runs of spaces as such
        at = tokens.index(run)
        tokens[at], metadata["tokenizer.ggml.token_type"][at] = run.replace("▁", " "), 4
    return metadata


FILES = {
    "byte level, default": byte_level(**{"tokenizer.ggml.pre": "default"}),
    "byte level, qwen2": byte_level(**{"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": True}),
    "byte level, llama-bpe": byte_level(
        **{
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.add_bos_token": True,
            "tokenizer.ggml.add_eos_token": True,
        }
    ),
    "byte level, tekken": byte_level(**{"tokenizer.ggml.pre": "tekken", "tokenizer.ggml.add_bos_token": False}),
    "byte level, gpt-4o": byte_level(**{"tokenizer.ggml.pre": "gpt-4o"}),
    "sentencepiece": sentencepiece(**{"tokenizer.chat_template": CHATML}),
    "sentencepiece, no BOS": sentencepiece(**{"tokenizer.ggml.add_bos_token": False}),
    "gemma": gemma(),
}


@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    metadata = FILES[name]
    tokenizer, reference = Tokenizer.from_gguf(metadata), theirs(metadata, tmp_path)
    texts = [*TEXTS, "a  b", "aa   bb", "the cat is at the time", "12   3"]
    if name.startswith("byte"):
        texts += ["a <think> b", "<s> </s> <|im_end|>"]
    elif name.startswith("sentencepiece"):
        texts = [text for text in texts if not text.startswith(" ")]  # see test_a_leading_space_stays
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text, split_special_tokens=True)
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.bos, tokenizer.eos[0], tokenizer.unk) == (
        reference.bos_token_id,
        reference.eos_token_id,
        reference.unk_token_id,
    )
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])


def test_chats_are_those_of_transformers(tmp_path: Path) -> None:
    metadata = FILES["byte level, qwen2"]
    tokenizer, reference = Tokenizer.from_gguf(metadata), theirs(metadata, tmp_path)
    assert tokenizer.render_chat(MESSAGES) == reference.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.chat(MESSAGES) == reference.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )


def test_smollm_cuts_out_digits_first() -> None:
    """As in SmolLM's tokenizer.json and in llama.cpp; transformers' reader uses GPT-2's cut alone: "  ", " 12"."""
    tokenizer = Tokenizer.from_gguf(byte_level())
    cut = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Digits(individual_digits=True),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in [*TEXTS, "a   12", "\n   1. x", "½ ² ① x3y"]:
        pieces = [piece for piece, _ in tokenizer._raw.pre_tokenizer.pre_tokenize_str(text)]
        assert pieces == [piece for piece, _ in cut.pre_tokenize_str(text)]


def test_a_leading_space_stays() -> None:
    """As in SentencePiece, llama.cpp and Llama 2's tokenizer.json; transformers' reader makes " a" and "a" the same."""
    tokenizer = Tokenizer.from_gguf(sentencepiece())
    for text in (" ", "  ", " a cat", "   a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_space_prefix_comes_after_each_added_token() -> None:
    """As in llama.cpp, and what Llama 2 was trained on: "<s>[INST]" begins with "▁["."""
    tokenizer = Tokenizer.from_gguf(sentencepiece(**{"tokenizer.chat_template": "<s>a cat</s>a cat"}))
    cat = tokenizer.encode("a cat", special=False)
    assert tokenizer.token(cat[0]) == "▁a"
    assert tokenizer.chat([{"role": "user", "content": "x"}]) == [1, *cat, 2, *cat]


def test_no_space_prefix_where_the_file_says_so() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.token(tokenizer.encode("a", special=False)[0]) == "a"


@given(text=st.text(st.sampled_from("<s>/ 0xA"), max_size=12))
def test_merges_never_make_a_control_or_byte_token(text: str) -> None:
    """The vocabulary has "<s" and "s>", so that merging by score alone would make "<s>"."""
    tokenizer = SPELLS_CONTROL
    ids = tokenizer._raw.encode(text, add_special_tokens=False).ids
    assert not set(ids) & {0, 1, 2}
    assert tokenizer.decode(ids) == text


SPELLS_CONTROL = Tokenizer.from_gguf(sentencepiece())


def test_words_that_are_tokens_are_whole_in_llama3() -> None:
    changes = {"tokenizer.ggml.merges": [], "tokenizer.ggml.pre": "llama-bpe"}
    whole = Tokenizer.from_gguf(byte_level(**changes))
    word = next(t for t in byte_level()["tokenizer.ggml.tokens"][300:] if t.isalpha() and t.isascii() and len(t) > 1)
    assert whole.encode(word, special=False) == [whole.id(word)]
    parted = Tokenizer.from_gguf(byte_level(**changes | {"tokenizer.ggml.pre": "qwen2"}))
    assert len(parted.encode(word)) == len(word)


def test_bos_is_added_by_default_where_llama_cpp_does() -> None:
    for pre, added in (("llama-bpe", [1]), ("tekken", [1]), ("qwen2", []), ("smollm", [])):
        assert Tokenizer.from_gguf(byte_level(**{"tokenizer.ggml.pre": pre})).encode("") == added
    assert Tokenizer.from_gguf(sentencepiece()).encode("") == [1]


def test_every_end_of_turn_is_an_end() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(**{"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}))
    assert tokenizer.eos == (2, 0)


def test_tokens_written_as_text_and_control_tokens_outside_the_byte_alphabet() -> None:
    metadata = byte_level()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokens += ["日本", "<｜User｜>"]
    types += [1, 3]
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.chat_template": "<｜User｜>{{ messages[0].content }}"})
    assert tokenizer.specials["<｜User｜>"] == 421
    ids = tokenizer.chat([{"role": "user", "content": "日本<｜User｜>"}])
    assert ids[0] == 421
    assert 421 not in ids[1:]
    assert tokenizer.decode([420]) == "日本"
    assert tokenizer.decode(ids) == "日本<｜User｜>"


def test_a_missing_pre_is_reported() -> None:
    metadata = byte_level()
    del metadata["tokenizer.ggml.pre"]
    with pytest.warns(UserWarning, match=r"names no tokenizer\.ggml\.pre"):
        assert Tokenizer.from_gguf(metadata).encode("a") == Tokenizer.from_gguf(FILES["byte level, default"]).encode(
            "a"
        )


def test_named_templates() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(**{"tokenizer.chat_template.tool_use": "x"}))
    assert tokenizer.chat_templates == {"default": CHATML, "tool_use": "x"}


@pytest.mark.parametrize("pre", GGUF_PRE)
def test_every_known_pre_gives_text_back(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(**{"tokenizer.ggml.pre": pre}))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


WRONG = {
    "no model": ({"tokenizer.ggml.model": None}, r"tokenizer\.ggml\.model is missing"),
    "other model": ({"tokenizer.ggml.model": "rwkv"}, r"'rwkv'; known are 'gpt2'.*'llama'"),
    "unknown pre": ({"tokenizer.ggml.pre": "new-1"}, r"tokenizer\.ggml\.pre is 'new-1'; known are a\.x-4\.0, .*tekken"),
    "pre of another type": ({"tokenizer.ggml.pre": ["a"]}, r"tokenizer\.ggml\.pre is"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
    "tokens not text": ({"tokenizer.ggml.tokens": [1, 2]}, r"tokenizer\.ggml\.tokens is not a list of str"),
    "token twice": ({"tokenizer.ggml.tokens": ["a"] * 420}, r"tokenizer\.ggml\.tokens: 'a' has the ids 0 and 419"),
    "too few types": ({"tokenizer.ggml.token_type": [1]}, r"tokenizer\.ggml\.token_type has 1 entries for 420 tokens"),
    "no merges": ({"tokenizer.ggml.merges": None}, r"tokenizer\.ggml\.merges is missing"),
    "half a merge": ({"tokenizer.ggml.merges": ["a b", "ab"]}, r"tokenizer\.ggml\.merges\[1\] is 'ab'"),
    "merge of unknown": ({"tokenizer.ggml.merges": ["a zzz"]}, "zzz"),
    "BOS out of range": ({"tokenizer.ggml.bos_token_id": 420}, r"tokenizer\.ggml\.bos_token_id is 420.*420 tokens"),
    "EOS not a number": ({"tokenizer.ggml.eos_token_id": "</s>"}, r"tokenizer\.ggml\.eos_token_id is '</s>'"),
    "BOS wanted, not named": (
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
        r"add_bos_token is true, but there is no bos_token_id",
    ),
    "flag not a flag": ({"tokenizer.ggml.add_bos_token": 1}, r"tokenizer\.ggml\.add_bos_token is 1, not a bool"),
    "template not text": ({"tokenizer.chat_template": 3}, r"tokenizer\.chat_template \(default\) is not a string"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    changes, message = WRONG[name]
    metadata = {key: value for key, value in (byte_level() | changes).items() if value is not None}
    with pytest.raises(TokenizerError, match=message):
        build(metadata)


def test_sentencepiece_needs_scores() -> None:
    metadata = sentencepiece()
    metadata["tokenizer.ggml.scores"] = metadata["tokenizer.ggml.scores"][1:]
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.scores has"):
        build(metadata)
