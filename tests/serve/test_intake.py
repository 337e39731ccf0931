"""From what is asked to a job: what the model can't take is refused before anything runs."""

from typing import Any

import pytest

from qkv import spec
from qkv.errors import InputError
from qkv.generate.settings import Settings
from qkv.serve.ask import Ask, answer_seed
from qkv.serve.events import Event
from qkv.serve.intake import Intake, limits_of
from qkv.serve.memory import Memory, plan_memory
from tests.generate.tiny import model_spec, pair_spec
from tests.serve.conftest import llama
from tests.serve.driving import filled, model, wish


def intake(kind: str = "float32", seed: int | None = 0) -> Intake:
    made = model(kind)
    return Intake(made, plan_memory(made, cache=320), seed)


def ask(prompt: Any = (1, 2), settings: Settings | None = None, **fields: Any) -> Ask:
    return Ask("a", tuple(prompt), settings or wish(), **fields)


def ignore(event: Event) -> None:
    """Nobody hears."""


def test_each_answer_has_a_seed_of_its_own() -> None:
    job = intake().job(ask(settings=wish(temperature=1.0, seed=9), n=3), ignore)
    assert [answer.writer.sampler.seed for answer in job.answers] == [answer_seed(9, i) for i in range(3)]
    assert [answer.index for answer in job.answers] == [0, 1, 2]
    assert intake().job(ask(), ignore).answers[0].writer.sampler.seed is None, "greedy"


def test_seeds_that_nobody_gave() -> None:
    drawn = wish(temperature=1.0)

    def seed(of: Intake) -> Any:
        return of.job(ask(settings=drawn), ignore).answers[0].writer.sampler.seed

    one, other, free = intake(seed=1), intake(seed=1), intake(seed=None)
    assert seed(one) == seed(other) != seed(one)
    assert seed(free) != seed(free)


def test_lengths_are_cut_to_what_fits() -> None:
    def limit(prompt: int, settings: Settings) -> int:
        return intake().job(ask([1] * prompt, settings), ignore).answers[0].writer.request.limit

    assert limit(200, Settings(max_tokens=None)) == 56
    assert limit(200, Settings.of({"max_new_tokens": 500})) == 56
    assert limit(200, wish(max_tokens=5)) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"settings": wish(min_tokens=9)}, "min_tokens"),
        ({"settings": wish(suppress=[257])}, "suppress: token id 257"),
        ({"settings": wish(start=3)}, "start is for an encoder–decoder"),
        ({"n": 0}, "n must be"),
        ({"prompt": [257]}, "prompt: a token id"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        intake().job(ask(**fields), ignore)


def test_only_scoring_has_one_request_without_an_answer() -> None:
    job = intake().job(ask(n=0, echo_logprobs=0), ignore)
    assert [answer.writer.request.limit for answer in job.answers] == [0]
    with pytest.raises(InputError, match="suppress"):
        intake().job(ask(n=0, echo_logprobs=0, settings=wish(suppress=[300])), ignore)


def test_an_encoder_decoder_begins_at_its_start() -> None:
    request = intake("pair").job(ask([7, 8]), ignore).answers[0].writer.request
    assert (request.source, request.prompt) == ([7, 8], [0])


def test_the_first_step_of_an_engine() -> None:
    for kind in ("float32", "pair"):
        job = intake(kind).warm_up()
        assert job.answers[0].writer.request.limit == 2
    tight = filled(model_spec(context=3))
    job = Intake(tight, plan_memory(tight, cache=320)).warm_up()
    assert (len(job.ask.prompt), job.answers[0].writer.request.limit) == (1, 2)


def test_answers_share_no_decoder() -> None:
    """A prompt that ends within a character, which each answer may end otherwise."""
    made = intake().job(ask([*"a€".encode()[:3]], n=2), ignore)
    one, other = (answer.writer.text for answer in made.answers)
    assert one.push(0xAC) + one.push(0x42) == other.push(0xAC) + other.push(0x42)
    assert one.decoder is not other.decoder
    served = Intake(llama(), plan_memory(llama(), cache=640))
    ids = served.model.tokenizer.encode("aé€ z")  # type: ignore[union-attr]
    texts = [answer.writer.text for answer in served.job(ask(ids[:-3], n=3), ignore).answers]
    pieces = [[text.push(id) for id in ids[-3:]] for text in texts]
    stream = served.model.tokenizer.stream(context=ids[:-3])  # type: ignore[union-attr]
    assert pieces == [[stream.push(id) for id in ids[-3:]]] * 3


def of(model: spec.Model, pages: int) -> tuple[int, int | None]:
    limits = limits_of(model, Memory(0, 16, pages, 1, None, model.context))
    assert limits.vocab == model.vocab
    return limits.context, limits.source


def test_limits_are_the_models_or_the_caches() -> None:
    assert of(model_spec(), 100) == (256, None)
    assert of(model_spec(), 10) == (160, None)
    assert of(model_spec(context=None), 10) == (160, None)
    assert of(pair_spec("relative"), 20) == of(pair_spec("relative"), 21) == (160, 160)
    assert of(pair_spec("learned"), 20)[1] == 24
