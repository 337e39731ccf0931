"""From prompts to what a decoder begins with: checked for the model, the encoder's part and the decoder's."""

from dataclasses import replace
from typing import Any

import pytest

from qkv import spec
from qkv.errors import InputError
from qkv.generate.request import requests
from qkv.generate.settings import Settings
from qkv.nn.stack import Transformer
from tests.generate.tiny import VOCAB, Bytes, model_spec, pair, pair_spec, tiny

WISH = Settings(max_tokens=5)
ENCODER = spec.Model(VOCAB, 32, encoder=pair_spec("learned").encoder, head=spec.States())


def test_a_decoder_begins_with_the_prompt() -> None:
    (made,) = requests(tiny(), [[1, 2, 3]], [WISH])
    assert (made.source, made.prompt, made.limit) == ([], [1, 2, 3], 5)


def test_an_encoder_reads_the_prompt_and_the_decoder_begins_with_start() -> None:
    made = requests(pair(), [[1, 2, 3], [4]], [WISH, replace(WISH, start=9, max_tokens=None, max_length=8)])
    assert [(one.source, one.prompt, one.limit) for one in made] == [([1, 2, 3], [0], 5), ([4], [9], 7)]
    assert requests(pair("learned"), [[1]], [replace(WISH, max_tokens=99)])[0].limit == 23


def test_a_text_goes_on_from_the_prompt_or_is_one_of_its_own() -> None:
    before = []

    def decoder(context: Any) -> Any:
        before.append(context)
        return Bytes().stream()

    for model in (tiny(), pair()):
        requests(model, [[1, 2]], [WISH], decoder)[0].text()
    assert before == [[1, 2], []]


@pytest.mark.parametrize(
    ("model", "prompt", "changes", "message"),
    [
        (pair(), [], {}, "prompt 0 is empty"),
        (pair(), [VOCAB], {}, "prompt 0: token id 257 is outside the vocabulary of 257"),
        (pair("learned"), [1] * 25, {}, "has 25 tokens; this model's encoder reads at most 24: its encoder's learned"),
        (pair(), [1], {"start": VOCAB}, "start: token id 257 is outside the vocabulary"),
        (pair(), [1], {"max_length": 1}, "prompt 0 has 1 tokens; with its answer it must fit into 1: max_length"),
        (pair(), [1], {"max_tokens": None}, "nothing limits the answer"),
        (tiny(), [1], {"start": 3}, "start is for an encoder–decoder"),
        (tiny(), [1, 2], {"forced_first": 3}, "forced_first changes nothing behind prompt 0, which has 2 tokens"),
        (tiny(), [1], {"suppress": (VOCAB,)}, "suppress: token id 257 is outside"),
        (tiny(), [1], {"suppress_first": (VOCAB,)}, "suppress_first: token id 257 is outside"),
        (tiny(), [1], {"forced_first": VOCAB}, "forced_first: token id 257 is outside"),
        (tiny(), [1], {"forced_last": VOCAB}, "forced_last: token id 257 is outside"),
        (tiny(), [1], {"bad_words": ((1, VOCAB),)}, "bad_words: token id 257 is outside"),
        (tiny(), [1], {"stop": ("x",)}, "stop texts need a tokenizer"),
    ],
)
def test_what_does_not_suit_the_model_is_an_error(
    model: Transformer, prompt: list[int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        requests(model, [prompt], [Settings(**{"max_tokens": 5, **changes})])


def test_what_a_file_says_without_effect_is_no_error() -> None:
    wish = Settings.of({"decoder_start_token_id": 3, "forced_bos_token_id": 4}, max_tokens=5)
    assert requests(tiny(), [[1, 2]], [wish])[0].prompt == [1, 2]
    assert requests(pair(), [[1, 2]], [wish])[0].prompt == [3]


def test_without_a_start_token_nothing_begins() -> None:
    with pytest.raises(InputError, match="which token an answer begins behind: give start"):
        requests(Transformer(pair_spec("relative", start=None)), [[1]], [WISH])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ENCODER, r"has no decoder \(States\), so it can't generate: it gives vectors \(`embed`\)"),
        (replace(ENCODER, head=spec.MaskedLM(spec.LayerNorm())), r"what a mask hides \(`fill`\)"),
        (replace(ENCODER, head=spec.Classify(("a", "b"))), r"it labels a text \(`predict`\)"),
        (replace(ENCODER, head=spec.Replaced()), r"\(Replaced\), so it can't generate: call it with ids"),
        (model_spec(head=spec.Classify(("a", "b"), pick="last")), r"without a language model's head \(Classify\)"),
        (model_spec(head=spec.Pool()), "it gives vectors"),
    ],
)
def test_a_model_that_does_not_generate_says_what_it_does(model: spec.Model, message: str) -> None:
    with pytest.raises(InputError, match=message):
        requests(Transformer(model), [[1]], [WISH])
