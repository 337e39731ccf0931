"""What limits an answer: the smallest of all limits, by name."""

from dataclasses import replace

import pytest

from qkv import spec
from qkv.errors import InputError
from qkv.generate.limits import check_source, room
from qkv.generate.settings import Settings
from tests.generate.tiny import model_spec, pair_spec

FREE = Settings(max_tokens=None)
LEARNED = model_spec(attention={"position": None}, embed=spec.Embed(spec.Learned(64)), context=100)
DYNAMIC = model_spec(attention={"position": spec.Rotary(scaling=spec.DynamicNTKScaling(2.0, length=32))}, context=None)
OVER_ALL = replace(  # one scheme for all layers
    model_spec(context=None),
    decoder=replace(
        model_spec(attention={"position": None}).decoder,
        position=spec.Rotary(scaling=spec.DynamicNTKScaling(2.0, length=32)),
    ),
)


@pytest.mark.parametrize(
    ("model", "settings", "prompt", "cache", "answer"),
    [
        (model_spec(), FREE, 10, None, 246),
        (model_spec(), Settings(max_tokens=5), 10, None, 5),
        (model_spec(), Settings(max_tokens=5), 254, None, 2),
        (model_spec(), Settings(max_tokens=5, max_length=12), 10, None, 2),
        (model_spec(), Settings(max_tokens=5), 10, 13, 3),
        (model_spec(), Settings(max_tokens=5, allow_long=True), 1000, None, 5),
        (model_spec(context=None), Settings(max_tokens=5), 1000, None, 5),
        (LEARNED, FREE, 60, None, 4),
        (LEARNED, Settings(allow_long=True), 60, None, 4),
        (DYNAMIC, Settings(allow_long=True), 30, None, 2),
        (pair_spec("relative"), Settings(max_tokens=50), 1, None, 50),
        (pair_spec("relative", context=10), FREE, 1, None, 9),
        (pair_spec("learned"), FREE, 1, None, 23),
        (model_spec(), Settings(max_tokens=5, min_tokens=5), 10, None, 5),
        (model_spec(), Settings(max_tokens=5, min_length=15), 10, None, 5),
        (OVER_ALL, FREE, 30, None, 2),
    ],
)
def test_the_room_for_an_answer(
    model: spec.Model, settings: Settings, prompt: int, cache: int | None, answer: int
) -> None:
    assert room(model, 0, prompt, settings, cache) == answer


@pytest.mark.parametrize(
    ("model", "settings", "prompt", "message"),
    [
        (model_spec(), FREE, 256, "prompt 3 has 256 tokens; .* fit into 256: .*trained on; allow_long=True"),
        (LEARNED, Settings(allow_long=True), 64, "has 64 tokens; .* into 64: this model's learned positions"),
        (DYNAMIC, FREE, 40, "has 40 tokens; .* into 32: from there on dynamic NTK scaling"),
        (model_spec(), Settings(max_length=5), 5, r"into 5: max_length \(given\); max_tokens lifts it"),
        (model_spec(context=None), FREE, 5, "nothing limits the answer"),
        (
            model_spec(),
            Settings(max_tokens=5, min_tokens=6),
            5,
            r"min_tokens 6 \(given\) asks for 6 new tokens .* for 5",
        ),
        (model_spec(), Settings(max_tokens=5, min_length=16), 10, r"min_length 16 \(given\) asks for 6 .*min_length=0"),
    ],
)
def test_no_room_is_an_error_with_both_numbers(
    model: spec.Model, settings: Settings, prompt: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        room(model, 3, prompt, settings)


def test_an_encoder_reads_as_much_as_it_has_positions_and_was_trained_on() -> None:
    learned, relative = pair_spec("learned"), pair_spec("relative", context=10)
    check_source(learned, 0, 24, FREE)
    check_source(relative, 0, 10, FREE)
    check_source(relative, 0, 500, Settings(allow_long=True))
    with pytest.raises(
        InputError, match=r"prompt 2 has 25 tokens; .* reads at most 24: its encoder's learned positions"
    ):
        check_source(learned, 2, 25, Settings(allow_long=True))
    with pytest.raises(InputError, match=r"reads at most 10: .*trained on; allow_long=True goes beyond"):
        check_source(relative, 0, 11, FREE)
