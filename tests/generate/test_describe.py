"""The line that says what is in force: for beam searches, and for what is forced and forbidden."""

from qkv.generate.describe import REST, SEARCHING, SHAPING, describe
from qkv.generate.settings import Settings

MARIAN = {
    "bad_words_ids": [[58100]],
    "decoder_start_token_id": 58100,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "max_length": 512,
    "num_beams": 6,
    "pad_token_id": 58100,
    "renormalize_logits": True,
}


def test_a_search_is_described_with_what_forms_its_text() -> None:
    assert describe(Settings.of(MARIAN, length_penalty=0.6)) == (
        "beam search: beams 6 (generation_config.json), length_penalty 0.6 (given), bad_words 58100, forced_last 0"
        " (generation_config.json); max_length 512 (generation_config.json); stop_tokens 0 (generation_config.json)"
    )
    assert describe(Settings.of(MARIAN, beams=1, max_tokens=9)) == (
        "greedy (default), bad_words 58100, forced_last 0 (generation_config.json); max_tokens 9 (given); stop_tokens 0"
        " (generation_config.json)"
    )


def test_long_lists_are_counted_and_every_name_is_a_field() -> None:
    assert "suppress 90 of them" in describe(Settings(suppress=tuple(range(90))))
    assert set(SEARCHING) | set(SHAPING) | set(REST) <= set(vars(Settings()))
