"""Texts, a chat template, and vocabularies written by hand that the tests of inputs share."""

from typing import Any

from hypothesis import strategies as st

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?",
    "def f(x):\n    return x + 1\n\n\nclass A:\n\tpass\n",
    "日本語のテキストと中国话。 Café naïve Ünïcödé — “quotes” … €",
    "One two three four five six seven eight nine ten eleven twelve. Don't do not! 😀👩‍👩‍👧",
] * 3
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces ",
    "12345 6789",
    "a 1 b 22 c333",
    "def f(x):\n    return x+1\n\n\n\tpass\n",
    "日本語のテキスト、中国话",
    "café naïve e\u0301",
    "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "\n\n  \n",
    "I'm you're we'll THEY'D",
    "½ ² ①",
    "\u200b\ufeffx\0y",
    "http://a.b/c?d=e&f=1#g",
]


def sentencepiece(**changes: object) -> dict[str, Any]:
    """A SentencePiece vocabulary as GGUF metadata, spelled out: pieces, scores and types."""
    words = ["▁t", "he", "▁the", "▁a", "in", "▁c", "at", "▁cat", "qu", "▁▁", "▁▁▁▁", "is", "▁is", "ti", "▁time", "me"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("▁THECAT.,!?'0123456789<>/s|_é日")
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(word, -float(i), 1) for i, word in enumerate([*words, "<s", "s>", "/s>", "</s"])]
    pieces += [(letter, -1000.0 - i, 1) for i, letter in enumerate(dict.fromkeys(letters))]
    pieces += [("<think>", 0.0, 4)]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **changes,
    }


KINDS = ["bpe", "wordpiece", "unigram", "char", "word", "sentencepiece"]
# Any Unicode text, with more of what tokenizers stumble over than chance would give.
any_text = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from([*TEXTS, "<s>", "</s>", "<|im_end|>", "<|im_start|>system", "[CLS]", "<0x41>", "▁", "##a"]),
    ),
    max_size=6,
).map("".join)
