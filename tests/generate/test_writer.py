"""One answer as it is written: what each token shows, and what ends it."""

import pytest
import torch

from qkv.errors import InputError
from qkv.generate.request import Request
from qkv.generate.settings import Settings
from qkv.generate.writer import Writer
from tests.generate.tiny import VOCAB, Bytes


def writer(limit: int = 9, **changes: object) -> Writer:
    settings = Settings(**changes)  # type: ignore[arg-type]
    return Writer(Request(0, [], [1], limit, settings, lambda before: Bytes().stream()))


def said(made: Writer, text: bytes | list[int]) -> list[tuple[int, str, str | None]]:
    """Of a model that says this."""
    ids, found = [1], []
    for token in text:
        logits = torch.nn.functional.one_hot(torch.tensor(token), VOCAB).float()
        choice, shown, reason = made.write(logits, ids)
        ids.append(choice.token)
        found.append((choice.token, shown, reason))
    return found


def test_a_limit_ends_it_and_shows_what_was_held_back() -> None:
    assert said(writer(3, stop=("cd",)), b"abc") == [(97, "a", None), (98, "b", None), (99, "c", "length")]


def test_a_stop_text_ends_it() -> None:
    assert said(writer(3, stop=("bc",)), b"abc") == [(97, "a", None), (98, "", None), (99, "", "stop")]


def test_a_stop_token_ends_it_and_is_not_shown() -> None:
    assert said(writer(stop_tokens=(256,)), [97, 256]) == [(97, "a", None), (256, "", "stop")]
    assert said(writer(stop_tokens=(256,), ignore_eos=True), [97, 256]) == [(97, "a", None), (256, "", None)]


def test_a_forced_last_token_is_no_choice_of_the_model() -> None:
    made = said(writer(2, stop_tokens=(256,), forced_last=(256,)), [97, 98])
    assert made == [(97, "a", None), (256, "", "length")]


def test_what_can_not_be_chosen_changes_nothing() -> None:
    made = writer(bad_words=[[i] for i in range(VOCAB)])
    with pytest.raises(InputError, match="nothing is left"):
        made.write(torch.zeros(VOCAB), [1])
    assert made.sampler.made == 0
