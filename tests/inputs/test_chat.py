"""S12: only the template writes control tokens, whatever the messages say and wherever they say it."""

import json
import time
from typing import Any

import pytest
import tokenizers as library
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers

from qkv.errors import InputError, TokenizerError
from qkv.inputs.chat import Controls
from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from tests.inputs.samples import CHATML, CORPUS, any_text, sentencepiece

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "※"]
# Ways in which templates treat a content, and some in which none does.
TREATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{{ m.content.split('a')[-1] if m.content is string else '' }}{{ m.content | tojson }}"
    "{{ m.content | tojson(ensure_ascii=true) }}{{ m.content | string | lower }}{{ m.content | string | urlencode }}"
    "<|im_end|>\n"
    "{% endfor %}{% if tools %}{{ tools | tojson(indent=4) }}{% endif %}{{ note }}<|im_start|>assistant\n"
)


def byte_level(template: str = TREATED) -> Tokenizer:
    return train_tokenizer(CORPUS, "bpe", 300, special_tokens=SPECIAL, chat_template=template)


TOKENIZER = byte_level()
CONTROL = {id for token, id in TOKENIZER.specials.items()}


def controls(ids: list[int]) -> list[str]:
    return [TOKENIZER.token(id) for id in ids if id in CONTROL]


HALVES = [half for s in SPECIAL for n in (1, 4, len(s) - 1) for half in (s[:n], s[n:])]
pieces = st.lists(st.one_of(st.sampled_from([*SPECIAL, *map(str.upper, SPECIAL), *HALVES]), any_text), max_size=4).map(
    "".join
)


@given(contents=st.lists(pieces | st.lists(pieces, min_size=1, max_size=3), min_size=1, max_size=3), note=pieces)
@example(contents=[["<|im_", "start|>"]], note="")
@example(contents=[["a <| ", " "], ["\n<", "|im_end|> b"]], note="")
@example(contents=["<|IM_END|>", "x [INST] y"], note="</S>")
@example(contents=[["※", "<s"]], note="></s")
def test_the_control_tokens_are_the_templates_own(contents: list[str | list[str]], note: str) -> None:
    """Split over parts and messages, cut, lowered, quoted: no content makes a control token."""
    messages = [
        {"role": "user", "content": c if isinstance(c, str) else [{"type": "text", "text": part} for part in c]}
        for c in contents
    ]
    tools = [{"type": "function", "function": {"name": note, "parameters": {note: contents}}}]
    got = controls(TOKENIZER.chat(messages, tools=tools, note=note))
    assert got == ["<|im_start|>", "<|im_end|>"] * len(messages) + ["<|im_start|>"]


@given(content=st.text(st.sampled_from("ab-<s>AİS"), max_size=12))
@example(content="a-b<s>")
@example(content="<<s>>")
@example(content="İİİİİ<s>")
def test_special_tokens_that_overlap_or_hold_another(content: str) -> None:
    ids = OVERLAPPING.chat([{"role": "user", "content": content}])
    assert [id for id in ids if id < 5] == [4, 4]
    assert OVERLAPPING.decode(ids[1:-1], skip_special=False) == content + content.lower()


OVERLAPPING = train_tokenizer(
    CORPUS,
    "bpe",
    300,
    special_tokens=["<s>", "<<s>>", "a-b", "-b<", "[x]"],
    chat_template="[x]{{ messages[0].content }}{{ messages[0].content | lower }}[x]",
)


@given(contents=st.lists(any_text, min_size=1, max_size=3))
def test_the_text_is_all_there(contents: list[str]) -> None:
    tokenizer = byte_level_chatml
    messages = [{"role": "user", "content": content} for content in contents]
    want = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in contents) + "<|im_start|>assistant\n"
    assert tokenizer.render_chat(messages) == want
    assert tokenizer.decode(tokenizer.chat(messages), skip_special=False) == want


byte_level_chatml = byte_level(CHATML)


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "<s>{{ messages[0].content }}</s>"])
def test_a_users_bos_is_no_bos(template: str) -> None:
    tokenizer = byte_level(template)
    ids = tokenizer.chat([{"role": "user", "content": "<s>hi"}])
    assert ids == [tokenizer.specials[t] for t in ("<s>",) if template.startswith(t)] + tokenizer.encode("<s>hi") + [
        tokenizer.specials[t] for t in ("</s>",) if template.endswith(t)
    ]


def test_roles_and_types_are_words_that_templates_compare() -> None:
    tokenizer = train_tokenizer(
        CORPUS, "bpe", 300, special_tokens=["user", "text"], chat_template="{{ messages[0].role == 'user' }}"
    )
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "True"
    tokenizer.chat_templates["default"] = "{{ messages[0].content[0].type == 'text' }}"
    assert tokenizer.render_chat([{"role": "user", "content": [{"type": "text", "text": "x"}]}]) == "True"


def test_a_role_that_is_no_word_is_marked() -> None:
    ids = TOKENIZER.chat([{"role": "user<|im_end|>", "content": "x"}], note="")
    assert controls(ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_space_prefix_comes_where_it_comes_in_the_middle_of_a_text() -> None:
    """`prepend_scheme="first"` is only for the text's own start; the library itself is the reference."""
    vocab = {piece: id for id, piece in enumerate(["<unk>", "<s>", "</s>", "▁", "h", "i", "▁h", "▁hi", "hi"])}
    raw = library.Tokenizer(models.BPE(vocab, [("▁", "h"), ("h", "i"), ("▁h", "i")], unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first", split=False)])
    raw.add_special_tokens([AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)])
    for text in ("<s>hi</s>hi", "hi</s>hi hi", "<s>", "</s> hi", ""):
        whole = raw.encode(text, add_special_tokens=False).ids
        tokenizer = Tokenizer(
            library.Tokenizer.from_str(raw.to_str()), chat_template="{% raw %}" + text + "{% endraw %}"
        )
        assert tokenizer.chat([{"role": "user", "content": "x"}]) == whole


FLAGS = [
    {"rstrip": True},
    {"lstrip": True},
    {"lstrip": True, "rstrip": True},
    {"single_word": True},
    {"normalized": True},
    {},
]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@given(
    text=st.text(st.sampled_from("<s> \n\x1c\u3000aé]["), max_size=12).map(
        lambda t: t.replace("é", "<s>").replace("]", "[x]")
    )
)
def test_a_rendered_text_is_cut_as_the_library_cuts_it(flags: dict[str, bool], text: str) -> None:
    raw = library.Tokenizer.from_str(TOKENIZER._raw.to_str())
    raw.add_special_tokens([AddedToken("[x]", special=True, **({"normalized": False} | flags)), "[x]<s>"])
    raw.add_tokens(["a[x", "<s>a"])
    whole = raw.encode(text, add_special_tokens=False).ids
    library_parts = Controls(raw.get_added_tokens_decoder()).split(text, Controls({}).mark({}, ""))
    raw.encode_special_tokens = True
    ours = [
        [part] if isinstance(part, int) else raw.encode(part, add_special_tokens=False).ids for part in library_parts
    ]
    assert [id for part in ours for id in part] == whole


def test_an_ordinary_added_token_is_a_token_in_anyones_text() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece() | {"tokenizer.chat_template": "{{ messages[0].content }}"})
    think = tokenizer.id("<think>")
    assert think in tokenizer.encode("a <think>", special=False)
    assert think in tokenizer.chat([{"role": "user", "content": "a <think>"}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        ("hi", "messages is a list"),
        ({"role": "user"}, "messages is a list"),
        (["hi"], r"messages\[0\] is not a dict"),
        ([{"content": "hi"}], r"messages\[0\] is not a dict with a role"),
        ([{"role": "user", "text": "hi"}], r"messages\[0\], by the user, has no content"),
        ([{"role": "user", "content": None}], "has no content"),
        ([{"role": "user", "content": b"hi"}], r"messages\[0\]\.content is a bytes"),
        ([{"role": "user", "content": [{1: "hi"}]}], r"messages\[0\]\.content\[0\] has the key 1"),
        ([{"role": "user", "content": "\udc80"}], r"U\+DC80"),
        ([{"role": "user", "content": json.loads("[" * 900 + "]" * 900)}], "nested too deeply"),
        ([{"role": "user", "content": "".join(map(chr, range(0xFDD0, 0xFDF0)))}], "noncharacters"),
    ],
)
def test_messages_that_no_template_could_take(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        byte_level_chatml.chat(messages)


def test_noncharacters_in_a_message_stay() -> None:
    text = "\ufdd0<|im_end|>\\ufdd1\ufdd2"
    ids = byte_level_chatml.chat([{"role": "user", "content": text}], add_generation_prompt=False)
    assert byte_level_chatml.decode(ids, skip_special=False) == f"<|im_start|>user\n{text}<|im_end|>\n"


def test_many_typed_tokens_take_time_linear_in_them() -> None:
    times = []
    for count in (4_000, 32_000):
        begin = time.process_time()
        byte_level_chatml.chat([{"role": "user", "content": "<|im_end|>" * count}])
        times.append(time.process_time() - begin)
    assert times[1] < 20 * times[0]


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(TokenizerError, match="qkv generate"):
        Tokenizer.from_gguf(sentencepiece()).chat([{"role": "user", "content": "x"}])


def test_named_templates() -> None:
    named = {"default": "d", "tool_use": "t{{ tools | length }}", "rag": "r{{ documents | length }}"}
    tokenizer = Tokenizer(TOKENIZER._raw, chat_template=named)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer.render_chat(messages) == "d"
    assert tokenizer.render_chat(messages, tools=[{"name": "f"}]) == "t1"
    assert tokenizer.render_chat(messages, documents=[{"text": "f"}], template="rag") == "r1"
    with pytest.raises(TokenizerError, match="'sql'; there are: default, tool_use, rag"):
        tokenizer.render_chat(messages, template="sql")
