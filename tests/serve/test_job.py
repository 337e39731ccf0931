"""A request's life: what its client hears, the prompt's scores, its times."""

from typing import Any

import pytest
import torch

from qkv.generate.sample import Choice
from qkv.generate.settings import Settings
from qkv.serve.ask import Ask
from qkv.serve.events import Ended, Failed, Piece, Prompt, Scored
from qkv.serve.intake import Intake
from qkv.serve.job import Job, scored
from qkv.serve.memory import plan_memory
from tests.generate.tiny import VOCAB
from tests.serve.driving import Told, model, wish


def job(told: Any, prompt: list[int], settings: Settings | None = None, **fields: Any) -> Job:
    made = model()
    intake = Intake(made, plan_memory(made, cache=640), 0)
    return intake.job(Ask("a", tuple(prompt), settings or wish(), **fields), told)


def logits(token: int) -> torch.Tensor:
    """Of a model that says this one."""
    return torch.nn.functional.one_hot(torch.tensor(token), VOCAB).float()


def test_text_waits_for_whole_characters_and_its_tokens_with_it() -> None:
    told = Told()
    answer = job(told, [1], wish(max_tokens=5)).answers[0]
    ids = [1]
    for byte in "aé€".encode()[:5]:
        token, reason = answer.write(logits(byte), ids)
        assert token == byte
        ids.append(token)
    assert reason == "length"
    pieces = [(event.text, [one.token for one in event.tokens]) for event in told.events if isinstance(event, Piece)]
    assert pieces == [("a", [97]), ("é", [195, 169]), ("\ufffd", [226, 130])]


def test_a_stop_text_is_held_back_and_cut_off() -> None:
    told = Told()
    answer = job(told, [1], wish(max_tokens=50, stop=["STOP"])).answers[0]
    for place, byte in enumerate(b"to STSTOP"):
        _, reason = answer.write(logits(byte), [1])
        if place == 4:
            assert told.text() == "to "
    assert reason == "stop"
    assert told.text() == "to ST"
    assert bytes(told.tokens()) == b"to STSTOP"


def test_an_end_has_a_token_and_no_text() -> None:
    told = Told()
    answer = job(told, [1], wish(stop_tokens=[256])).answers[0]
    assert answer.write(logits(65), [1]) == (65, None)
    assert answer.write(logits(256), [1, 65]) == (256, "stop")
    answer.end("stop")
    assert (told.text(), told.tokens()) == ("A", [65, 256])
    assert told.ended[0].usage.completion == 2


@pytest.mark.parametrize("chunks", [[10], [1] * 10, [3, 4, 3], [9, 1], [1, 9]])
def test_a_prompt_is_scored_in_any_chunks(chunks: list[int]) -> None:
    told, prompt = Told(), list(range(10))
    made = job(told, prompt, echo_logprobs=2)
    whole = torch.randn(10, VOCAB, generator=torch.Generator().manual_seed(0))
    start = 0
    for count in chunks:
        wanted = made.unscored(start, count)
        end = start + count
        assert wanted <= count
        made.score(whole[end - wanted : end], end)
        assert made.unscored(start, count) == 0, "once is enough"
        start = end
    made.prompt_read()
    (event,) = told.events
    assert isinstance(event, Prompt)
    logp = whole.log_softmax(-1)
    assert [one.token for one in event.tokens] == prompt
    assert event.tokens[0] == Scored(0)
    for place in range(1, 10):
        assert event.tokens[place].logprob == pytest.approx(float(logp[place - 1, place]), abs=1e-5)
        assert [*event.tokens[place].top] == logp[place - 1].topk(2).indices.tolist()


def test_a_prompt_that_is_not_to_be_scored_is_not() -> None:
    told = Told()
    made = job(told, [1, 2, 3])
    assert made.unscored(0, 3) == 0
    made.score(torch.zeros(1, VOCAB), 3)
    made.prompt_read()
    assert told.events == []


def test_who_raises_hears_no_more() -> None:
    heard = []

    def deliver(event: Any) -> None:
        heard.append(event)
        raise ValueError

    made = job(deliver, [1])
    made.tell(Failed(ValueError(), 500))
    made.cancel()
    assert made.deaf
    assert len(heard) == 1


def test_cancelling_ends_what_is_open() -> None:
    told = Told(n=2)
    made = job(told, [1], n=2)
    made.answers[0].write(logits(65), [1])
    made.answers[0].end("stop")
    assert not made.over
    made.cancel()
    assert made.over
    assert [told.reason(i) for i in range(2)] == ["stop", "cancelled"]
    assert isinstance(told.events[-1], Ended)


def test_a_record_says_how_long_all_took() -> None:
    made = job(lambda event: None, [1, 2])
    record = made.finished("cancelled")
    assert (record.first, record.decode, record.completion, record.gaps) == (None, 0.0, 0, ())
    assert record.queued <= record.total
    for byte in b"abc":
        made.answers[0].write(logits(byte), [1])
    record = made.finished("failed", ValueError("why"))
    assert record.completion == 3
    assert len(record.gaps) == 2
    assert record.error == "ValueError: why"
    assert record.first is not None


def test_choices_as_events_say_them() -> None:
    assert scored(Choice(3)) == Scored(3, None, {})
    assert scored(Choice(3, -1.0, {3: -1.0})) == Scored(3, -1.0, {3: -1.0})
