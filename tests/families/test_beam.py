"""Beam search finds what transformers finds: the same texts with the same scores, for every family that generates."""

import random
from typing import Any

import pytest
import torch

from qkv import spec
from qkv.families.family import names
from qkv.generate.generate import generate
from qkv.generate.settings import Settings
from tests.families.reference import Case, case

CASES = 20
PROMPT, LIMIT = 6, 8  # together within the shortest table of positions


def generates(name: str) -> bool:
    model = case(name, "tiny").ours.spec
    return model.decoder is not None and isinstance(model.head, spec.LMHead)


FAMILIES = [name for name in names() if generates(name)]


def settings(made: Case, file: dict[str, Any] | None = None, **changes: Any) -> Settings:
    """As the model's own generation_config.json says, with what `file` and the changes say instead."""
    own = made.theirs.generation_config.to_diff_dict()
    start = {"decoder_start_token_id": own.get("bos_token_id")}  # what transformers takes where nothing is said
    return Settings.of({**start, **own, **(file or {})}, **{"stop_tokens": [], **changes})


def drawn(rng: random.Random, made: Case) -> tuple[list[list[int]], dict[str, Any]]:
    """Some prompts, and settings whose stop tokens their answers come across."""
    model = made.ours.spec
    prompts = [
        [rng.randrange(3, model.vocab) for _ in range(rng.randint(1, PROMPT))] for _ in range(rng.choice((1, 1, 2)))
    ]
    beams = rng.randint(2, 5)
    wish = {
        "beams": beams,
        "n_best": rng.randint(1, beams),
        "length_penalty": rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0]),
        "early_stopping": rng.choice([False, True, "never"]),
        "max_tokens": rng.randint(1, LIMIT),
    }
    free = generate(made.ours, None, prompts, settings(made, beams=beams, n_best=beams, max_tokens=LIMIT))
    reached = sorted({token for found in free for beam in found.beams for token in beam.tokens})
    never = [i for i in range(model.vocab) if i not in reached]
    stops = rng.sample(reached, min(len(reached), rng.randint(0, 2))) or never[:1]
    return prompts, {**wish, "stop_tokens": stops}


def theirs(
    model: Any, prompt: list[int], wish: Settings, more: dict[str, Any] | None = None
) -> list[tuple[list[int], float]]:
    """transformers' texts, without the prompt and up to the first stop token, with their scores. (Where there are fewer
    than asked for it repeats one with a score of −10⁹, by length.)"""
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=wish.beams,
        num_return_sequences=wish.n_best,
        length_penalty=wish.length_penalty,
        early_stopping=wish.early_stopping,
        max_new_tokens=wish.max_tokens,
        eos_token_id=list(wish.stop_tokens),
        pad_token_id=1,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **(more or {}),
    )
    scores = [0.0] if wish.beams == 1 else made.sequences_scores
    begin = 1 if model.config.is_encoder_decoder else len(prompt)
    texts = [[int(i) for i in row[begin : begin + wish.max_tokens]] for row in made.sequences]
    return [(cut(text, wish), float(score)) for text, score in zip(texts, scores, strict=True) if score > -1e6]


def cut(text: list[int], wish: Settings) -> list[int]:
    ends = [i + 1 for i, token in enumerate(text) if token in wish.stop_tokens]
    return text[: min(ends, default=len(text))]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_texts_and_scores_as_transformers(name: str) -> None:
    made, rng = case(name, "tiny"), random.Random(name)
    for _ in range(CASES):
        prompts, changes = drawn(rng, made)
        wish = settings(made, **changes)
        ours = generate(made.ours, None, prompts, wish)
        for prompt, found in zip(prompts, ours, strict=True):
            expected = theirs(made.theirs, prompt, wish)
            assert [beam.tokens for beam in found.beams] == [text for text, _ in expected], (prompt, changes)
            assert [beam.score for beam in found.beams] == pytest.approx([score for _, score in expected], abs=1e-4)


PROCESSORS: list[dict[str, Any]] = [  # as generation_config.json says them
    {"no_repeat_ngram_size": 1, "repetition_penalty": 1.3},
    {"forced_eos_token_id": 7, "min_length": 4, "bad_words_ids": [[5], [7, 8]]},
    {"suppress_tokens": [9, 10, 11], "begin_suppress_tokens": [12], "renormalize_logits": True},
    {"forced_bos_token_id": 13, "min_new_tokens": 3, "renormalize_logits": True, "no_repeat_ngram_size": 2},
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_where_tokens_are_forced_and_forbidden(name: str) -> None:
    made, rng = case(name, "tiny"), random.Random(name)
    for file in PROCESSORS:
        prompts, changes = drawn(rng, made)
        prompt = prompts[0][: rng.choice((1, PROMPT))]
        wish = settings(made, file, **{**changes, "beams": 3, "n_best": 3, "max_tokens": LIMIT})
        found = generate(made.ours, None, prompt, wish)
        expected = theirs(made.theirs, prompt, wish, file)
        assert [beam.tokens for beam in found.beams] == [text for text, _ in expected], (prompt, file, changes)
        assert [beam.score for beam in found.beams] == pytest.approx([score for _, score in expected], abs=1e-4)
        one = settings(made, file, stop_tokens=changes["stop_tokens"], max_tokens=LIMIT)
        greedy = theirs(made.theirs, prompt, one, file)
        assert generate(made.ours, None, prompt, one).tokens == greedy[0][0]
