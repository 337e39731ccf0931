"""What generating gives, as JSON and as pieces of text."""

import json
from dataclasses import replace

from qkv.generate.result import Beam, Generation, Piece
from qkv.generate.timing import Timing

GENERATION = Generation(
    text="é!",
    tokens=[5, 2],
    prompt_tokens=[1],
    finish_reason="stop",
    logprobs=[-0.5, -1.0],
    top_logprobs=[{5: -0.5}, {2: -1.0}],
    seed=None,
    timing=Timing(1, 0.1, 0.1, 1, 0.2, 100, None),
)


def test_a_generation_is_json() -> None:
    said = json.loads(json.dumps(GENERATION.to_dict(), allow_nan=False))
    assert list(said) == [
        *("text", "tokens", "prompt_tokens", "finish_reason", "logprobs", "top_logprobs", "seed", "timing"),
        *("score", "beams"),
    ]
    assert (said["text"], said["top_logprobs"][0]) == ("é!", {"5": -0.5})
    assert said["timing"]["tokens_per_second"] == 5
    assert (said["score"], said["beams"]) == (None, None)
    assert str(GENERATION) == "é!"


def test_a_search_is_json_with_its_beams() -> None:
    beam = Beam("é!", [5, 2], -0.75, -1.5, "stop", [-0.5, -1.0], None)
    said = json.loads(json.dumps(replace(GENERATION, score=-0.75, beams=[beam]).to_dict(), allow_nan=False))
    assert said["score"] == -0.75
    assert said["beams"] == [
        {
            "text": "é!",
            "tokens": [5, 2],
            "score": -0.75,
            "logprob": -1.5,
            "finish_reason": "stop",
            "logprobs": [-0.5, -1.0],
            "top_logprobs": None,
        }
    ]


def test_a_piece_is_text() -> None:
    pieces = [Piece("ab", 1, [7, 8]), Piece("c", 1, [9], GENERATION)]
    assert "".join(pieces) == "abc"
    assert (pieces[0].prompt_index, pieces[0].tokens, pieces[0].generation) == (1, [7, 8], None)
    assert pieces[1].generation is GENERATION
    assert pieces[0].index("b") == 1
