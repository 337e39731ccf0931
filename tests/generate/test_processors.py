"""What acts on scores: each as transformers' own, and all of them together in its order."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from qkv.generate.generation_config import RENAMED
from qkv.generate.processors import processors
from qkv.generate.settings import Settings

VOCAB = 7
ID = st.integers(0, VOCAB - 1)
IDS = st.lists(ID, min_size=1, max_size=9)
LISTS = st.lists(ID, min_size=1, max_size=3)
SCORES = st.lists(st.floats(-20, 20, width=32), min_size=VOCAB, max_size=VOCAB).map(torch.tensor)
PROMPT, LIMIT = 2, 5


def ours(scores: Tensor, ids: list[int], wish: Settings, prompt: int = PROMPT) -> Tensor:
    for process in processors(wish, prompt, LIMIT):
        scores = process(scores, ids)
    return scores


def same(mine: Tensor, their: Tensor) -> None:
    torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)


def theirs(*made: LogitsProcessor, scores: Tensor, ids: list[int]) -> Tensor:
    for one in made:
        scores = one(torch.tensor([ids]), scores[None].clone())[0]
    return scores


EACH: list[tuple[dict[str, Any], LogitsProcessor]] = [
    ({"repetition_penalty": 1.5}, RepetitionPenaltyLogitsProcessor(1.5)),
    *(({"no_repeat_ngram": n}, NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3)),
    ({"bad_words": [[3], [1, 2], [2, 2, 0]]}, NoBadWordsLogitsProcessor([[3], [1, 2], [2, 2, 0]])),
    (
        {"bad_words": [[3], [1, 4]], "stop_tokens": [3, 4]},
        NoBadWordsLogitsProcessor([[3], [1, 4]], torch.tensor([3, 4])),
    ),
    ({"min_length": 4, "stop_tokens": [2, 5]}, MinLengthLogitsProcessor(4, [2, 5])),
    ({"min_tokens": 3, "stop_tokens": [2, 5]}, MinNewTokensLengthLogitsProcessor(PROMPT, 3, [2, 5])),
    ({"forced_last": 6}, ForcedEOSTokenLogitsProcessor(PROMPT + LIMIT, 6)),
    ({"forced_last": [6, 1]}, ForcedEOSTokenLogitsProcessor(PROMPT + LIMIT, [6, 1])),
    ({"suppress": [0, 4]}, SuppressTokensLogitsProcessor([0, 4])),
    ({"suppress_first": [0, 4]}, SuppressTokensAtBeginLogitsProcessor([0, 4], PROMPT)),
]


@settings(max_examples=15)
@pytest.mark.parametrize(("changes", "processor"), EACH, ids=[f"{i}: {next(iter(c))}" for i, (c, _) in enumerate(EACH)])
@given(SCORES, IDS)
def test_each_is_transformers(
    changes: dict[str, Any], processor: LogitsProcessor, scores: Tensor, ids: list[int]
) -> None:
    same(ours(scores, ids, Settings(**changes)), theirs(processor, scores=scores, ids=ids))


@given(SCORES, IDS)
def test_a_forced_first_token_is_transformers(scores: Tensor, ids: list[int]) -> None:
    mine = ours(scores, ids, Settings(forced_first=4), prompt=1)
    same(mine, theirs(ForcedBOSTokenLogitsProcessor(4), scores=scores, ids=ids))
    assert not processors(Settings(forced_first=4), 2, LIMIT), "behind more than one token it does nothing"


@given(SCORES, IDS, st.integers(0, 6), st.floats(-2, 2), st.floats(-2, 2))
def test_penalties_are_the_openai_apis_formula(
    scores: Tensor, ids: list[int], prompt: int, presence: float, frequency: float
) -> None:
    """logit[j] − count[j] · frequency − (count[j] > 0) · presence, over the answer alone."""
    wish = Settings(presence_penalty=presence, frequency_penalty=frequency)
    counts = [ids[prompt:].count(j) for j in range(VOCAB)]
    expected = [x - n * frequency - (n > 0) * presence for x, n in zip(scores.tolist(), counts, strict=True)]
    same(ours(scores, ids, wish, prompt), torch.tensor(expected))


@given(SCORES, IDS, st.dictionaries(ID, st.floats(-100, 100)))
def test_a_bias_is_added(scores: Tensor, ids: list[int], biases: dict[int, float]) -> None:
    expected = torch.tensor([x + biases.get(j, 0) for j, x in enumerate(scores.tolist())])
    same(ours(scores, ids, Settings(logit_bias=biases)), expected)


def test_a_bias_does_not_bring_back_what_is_forbidden() -> None:
    wish = Settings(logit_bias={2: 100.0}, suppress=(2,))
    assert ours(torch.zeros(VOCAB), [0], wish)[2] == -math.inf


KEYS = {  # without a neutral value among them: whether a processor is there is drawn
    "repetition_penalty": st.sampled_from([0.7, 1.4]),
    "no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": st.lists(LISTS, min_size=1, max_size=3, unique_by=tuple),
    "min_length": st.integers(1, 6),
    "min_new_tokens": st.integers(1, 4),
    "forced_bos_token_id": ID,
    "forced_eos_token_id": ID,
    "suppress_tokens": LISTS,
    "begin_suppress_tokens": LISTS,
}


@settings(max_examples=100)
@given(SCORES, IDS, st.fixed_dictionaries({}, optional=KEYS), LISTS, st.integers(1, 3))
def test_all_together_in_transformers_order(
    scores: Tensor, ids: list[int], file: dict[str, Any], ends: list[int], prompt: int
) -> None:
    """A generation_config.json with any of these keys, as each of the two reads it."""
    prompt = min(prompt, len(ids))
    forced = [file[key] for key in ("forced_bos_token_id", "forced_eos_token_id") if key in file]
    assume(not set(forced) & set(file.get("suppress_tokens", ())))  # an error for both
    file = {**file, "eos_token_id": ends}
    wish = Settings.of(file)
    config = GenerationConfig(**{**file, "max_length": prompt + LIMIT})
    config._eos_token_tensor = torch.tensor(ends)
    if config.min_new_tokens is not None:
        config.min_length = config.min_new_tokens + prompt  # as its _prepare_generated_length does
    model = SimpleNamespace(
        config=SimpleNamespace(is_encoder_decoder=False),
        _merge_criteria_processor_list=lambda default, custom: default,
    )
    made = GenerationMixin._get_logits_processor(model, config, input_ids_seq_length=prompt, device="cpu")
    same(ours(scores, ids, wish, prompt), made(torch.tensor([ids]), scores[None].clone())[0])


def test_every_key_that_acts_on_scores_is_drawn_here() -> None:
    others = {"num_beams", "length_penalty", "early_stopping", "num_return_sequences", "renormalize_logits"}
    assert set(RENAMED) - others - {"decoder_start_token_id"} == set(KEYS) - {"repetition_penalty"}


def test_a_plain_greedy_answer_has_none() -> None:
    assert processors(Settings(stop_tokens=(1,)), 5, 10) == []
    assert processors(Settings(stop_tokens=(1,), temperature=0.5, top_p=0.9), 5, 10) == []
    assert processors(Settings(stop_tokens=(1,), min_tokens=3, ignore_eos=True), 5, 10) == []
    assert processors(Settings(stop_tokens=(1,), min_length=5), 5, 10) == []
    assert processors(Settings(stop_tokens=(1,), bad_words=((1,),)), 5, 10) == []


def test_scores_are_left_as_they_were() -> None:
    scores = torch.zeros(VOCAB)
    wish = Settings(suppress=(1,), no_repeat_ngram=1, repetition_penalty=2.0, bad_words=((2,),))
    wish = wish.replace(presence_penalty=1.0, logit_bias={4: 1.0})
    assert ours(scores, [0, 3], wish).isneginf().sum() == 4
    assert not scores.isneginf().any()
    assert math.isfinite(float(scores.sum()))
