"""Small tokenizers of every kind, made once a session."""

import warnings

import pytest

from qkv.inputs.text import Tokenizer
from qkv.inputs.train import train_tokenizer
from tests.inputs.samples import CHATML, CORPUS, sentencepiece


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """One tokenizer a kind, by name."""
    special = {"bos": "<s>", "eos": "<|im_end|>", "pad": "<pad>", "start": "<|im_start|>"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such a corpus doesn't hold as many tokens as asked for
        made = {
            "bpe": train_tokenizer(CORPUS, "bpe", 400, special_tokens=[*special.values()], chat_template=CHATML),
            "wordpiece": train_tokenizer(CORPUS, "wordpiece", 250),
            "unigram": train_tokenizer(CORPUS, "unigram", 200, chat_template=CHATML),
            "char": train_tokenizer(CORPUS, "char", special_tokens={"unk": "<unk>", "eos": "</s>"}),
            "word": train_tokenizer(CORPUS, "word", special_tokens={"unk": "<unk>", "eos": "</s>"}),
        }
    made["sentencepiece"] = Tokenizer.from_gguf(sentencepiece())
    return made
