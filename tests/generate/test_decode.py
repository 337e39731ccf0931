"""The loop: one answer for a prompt, alone or not, in any order, in any chunks, with a cache or without."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import InputError, WeightError
from qkv.generate.decode import Step, decode
from qkv.generate.settings import Settings
from qkv.nn.cache import Contiguous
from qkv.nn.stack import Transformer
from tests.generate.tiny import EOS, KINDS, VOCAB, Bytes, model_spec, pair, tiny

PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20), min_size=1, max_size=4)
GREEDY = Settings(max_tokens=6, logprobs=True)
SAMPLED = replace(GREEDY, temperature=0.8, top_k=40, top_p=0.95, seed=3)


def tokens(steps: Sequence[Step], index: int = 0) -> list[int]:
    return [step.choice.token for step in steps if step.index == index]


def run(model: Transformer, prompts: Sequence[Sequence[int]], wish: Settings) -> list[Step]:
    return list(decode(model, prompts, [wish] * len(prompts)))


def plain(model: Transformer, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy decoding by its definition: the whole text through the model for every token."""
    ids, logprobs = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            logp = model(torch.tensor([ids]))[0, -1].log_softmax(0)
            ids.append(int(logp.argmax()))
            logprobs.append(float(logp.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_with_a_cache_is_argmax_without(kind: str) -> None:
    prompt = list(b"attention is all")
    steps = run(tiny(kind), [prompt], replace(GREEDY, max_tokens=20))
    expected, logprobs = plain(tiny(kind), prompt, 20)
    assert tokens(steps) == expected
    assert [s.choice.logprob for s in steps] == pytest.approx(logprobs, abs=1e-4)


@settings(max_examples=15)
@given(st.sampled_from(sorted(KINDS)), PROMPTS, st.sampled_from([GREEDY, SAMPLED]), st.integers(1, 24), st.randoms())
def test_one_answer_alone_batched_in_any_order_and_in_any_chunks(kind, prompts, wish, chunk, random) -> None:  # type: ignore[no-untyped-def]
    alone = [tokens(run(tiny(kind), [prompt], wish)) for prompt in prompts]
    order = list(range(len(prompts)))
    random.shuffle(order)
    steps = run(tiny(kind), [prompts[i] for i in order], replace(wish, prefill_chunk=chunk))
    assert [tokens(steps, order.index(i)) for i in range(len(prompts))] == alone


@pytest.mark.parametrize("kind", ["rotary", "window"])
@pytest.mark.parametrize("chunk", range(1, 18))
def test_every_chunk_size_gives_the_same_tokens_and_logprobs(kind: str, chunk: int) -> None:
    prompt = list(b"attention is all")
    whole = run(tiny(kind), [prompt], GREEDY)
    chunked = run(tiny(kind), [prompt], replace(GREEDY, prefill_chunk=chunk))
    assert tokens(chunked) == tokens(whole)
    assert [s.choice.logprob for s in chunked] == pytest.approx([s.choice.logprob for s in whole], abs=1e-4)


@pytest.mark.parametrize("kind", ["relative", "learned"])
@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_beside_an_encoder_greedy_with_a_cache_is_argmax_without(kind: str, chunk: int) -> None:
    model, prompts = pair(kind), [[5, 6, 7], [9, 8, 200, 100, 3], [1]]
    steps = run(model, prompts, replace(GREEDY, max_tokens=9, prefill_chunk=chunk))
    for i, prompt in enumerate(prompts):
        ids, logprobs = [0], []
        for _ in range(9):
            with torch.no_grad():
                logp = model([prompt], [ids])[0][-1].log_softmax(0)
            ids.append(int(logp.argmax()))
            logprobs.append(float(logp.max()))
        assert tokens(steps, i) == ids[1:]
        assert [s.choice.logprob for s in steps if s.index == i] == pytest.approx(logprobs, abs=1e-4)
    ends = [s.end for s in steps if s.end is not None]
    assert sorted(end.timing.prompt_tokens for end in ends) == [1, 3, 5]


@settings(max_examples=10)
@given(st.sampled_from(["relative", "learned"]), PROMPTS, st.sampled_from([GREEDY, SAMPLED]), st.integers(1, 24))
def test_beside_an_encoder_too_batch_is_solo(kind: str, prompts: list[list[int]], wish: Settings, chunk: int) -> None:
    wish = replace(wish, no_repeat_ngram=1, forced_first=7, min_tokens=2)
    alone = [tokens(run(pair(kind), [prompt], wish)) for prompt in prompts]
    steps = run(pair(kind), prompts, replace(wish, prefill_chunk=chunk))
    assert [tokens(steps, i) for i in range(len(prompts))] == alone
    assert {answer[0] for answer in alone} == {7}
    assert all(len(set(answer)) == len(answer) for answer in alone)


def test_processors_act_on_greedy_answers_and_samples() -> None:
    free = tokens(run(tiny(), [[104]], GREEDY))
    for wish in (GREEDY, SAMPLED):
        assert free[0] not in tokens(run(tiny(), [[104]], replace(wish, suppress=(free[0],))))
        assert tokens(run(tiny(), [[104]], replace(wish, suppress_first=(free[0],))))[0] != free[0]
        assert tokens(run(tiny(), [[104]], replace(wish, forced_last=9)))[-1] == 9
        assert tokens(run(tiny(), [[104]], replace(wish, forced_first=9)))[0] == 9
    stopped = replace(GREEDY, stop_tokens=(free[1],))
    assert len(run(tiny(), [[104]], stopped)) == 2
    later = tokens(run(tiny(), [[104]], replace(stopped, min_tokens=4)))
    assert free[1] not in later[:3]
    assert len(later) >= 4


def test_an_encoder_decoder_takes_no_cache() -> None:
    with pytest.raises(InputError, match="begins each answer anew: it takes no cache"):
        decode(pair(), [[1]], [GREEDY], cache=tiny().new_cache())


def test_settings_are_each_prompts_own() -> None:
    prompt = list(b"hello")
    wishes = [GREEDY, replace(SAMPLED, max_tokens=3), replace(SAMPLED, seed=0), replace(GREEDY, repetition_penalty=0.1)]
    together = list(decode(tiny(), [prompt] * 4, wishes))
    for i, wish in enumerate(wishes):
        assert tokens(together, i) == tokens(run(tiny(), [prompt], wish))
    assert len({tuple(tokens(together, i)) for i in range(4)}) == 4


def test_finished_sequences_leave_the_batch_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(), []
    states = model.states
    monkeypatch.setattr(model, "states", lambda s, b, c: (rows.append(len(b.lengths)), states(s, b, c))[1])
    wishes = [replace(GREEDY, max_tokens=n) for n in (2, 5, 1)]
    steps = list(decode(model, [[1], [2], [3]], wishes))
    assert rows == [3, 2, 1, 1, 1]
    assert [sum(s.index == i for s in steps) for i in range(3)] == [2, 5, 1]
    assert [s.end.finish_reason for s in steps if s.end is not None] == ["length"] * 3


def test_a_step_reads_a_bounded_number_of_tokens_and_short_prompts_answer_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, sizes = tiny(), []
    states = model.states
    monkeypatch.setattr(model, "states", lambda s, b, c: (sizes.append(len(s)), states(s, b, c))[1])
    steps = run(model, [list(range(100)), [1, 2]], replace(GREEDY, max_tokens=3, prefill_chunk=10))
    assert max(sizes) == 10
    assert [s.index for s in steps] == [1, 1, 1, 0, 0, 0]


def test_a_forced_eos_is_the_limits_and_not_the_models_end() -> None:
    for ends in ((EOS,), ()):
        steps = run(tiny(), [[104]], replace(GREEDY, max_tokens=3, stop_tokens=ends, forced_last=EOS))
        assert tokens(steps)[-1] == EOS
        assert [s.end.finish_reason for s in steps if s.end is not None] == ["length"]


def test_eos_ends_an_answer_is_among_its_tokens_and_not_in_its_text() -> None:
    free = run(tiny(), [[104]], replace(GREEDY, max_tokens=8))
    third = tokens(free)[2]
    assert third not in tokens(free)[:2]
    wish = replace(GREEDY, max_tokens=8, stop_tokens=(EOS, third))
    steps = list(decode(tiny(), [[104]], [wish], decoder=lambda prompt: Bytes().stream()))
    assert tokens(steps) == tokens(free)[:3]
    assert "".join(s.text for s in steps) == Bytes().decode(tokens(free)[:2])
    assert steps[-1].end is not None
    assert steps[-1].end.finish_reason == "stop"
    assert len(run(tiny(), [[104]], replace(wish, ignore_eos=True))) == 8


def test_the_context_ends_an_answer() -> None:
    learned = run(tiny("learned"), [list(range(60))], replace(GREEDY, max_tokens=100))
    assert len(learned) == 4
    assert learned[-1].end is not None
    assert learned[-1].end.finish_reason == "length"
    assert len(run(tiny(), [list(range(250))], replace(GREEDY, max_tokens=None))) == 6
    assert len(run(tiny(), [list(range(250))], replace(GREEDY, max_tokens=10, allow_long=True))) == 10
    assert len(run(tiny(), [[1, 2, 3]], replace(GREEDY, max_tokens=None, max_length=8))) == 5


def test_a_cache_goes_on_where_it_ended() -> None:
    prompt, model = list(b"hello there"), tiny()
    cache = model.new_cache()
    first = tokens(list(decode(model, [prompt], [GREEDY], cache=cache)))
    assert cache.lengths == [len(prompt) + len(first) - 1]
    longer = [*prompt, *first, *b"and so on"]
    steps = list(decode(model, [longer], [GREEDY], cache=cache))
    assert tokens(steps) == tokens(run(model, [longer], GREEDY))
    assert steps[-1].end is not None
    assert steps[-1].end.timing.prompt_tokens == len(b"and so on") + 1
    with pytest.raises(InputError, match="cache holds 31 tokens, so prompt 0 of 3 adds nothing"):
        decode(model, [[1, 2, 3]], [GREEDY], cache=cache)
    with pytest.raises(InputError, match="holds 1 sequences, there are 2 prompts"):
        decode(model, [[1], [2]], [GREEDY] * 2, cache=cache)


def test_a_given_caches_room_ends_an_answer() -> None:
    steps = list(decode(tiny(), [[1, 2, 3]], [GREEDY], cache=tiny().new_cache(7)))
    assert len(steps) == 4
    with pytest.raises(InputError, match="prompt 0 has 3 tokens; with its answer it must fit into 3: the given cache"):
        decode(tiny(), [[1, 2, 3]], [GREEDY], cache=tiny().new_cache(3))


def test_everything_is_checked_before_the_first_step() -> None:
    model = tiny()
    for prompts, wish, message in [
        ([[]], GREEDY, "prompt 0 is empty"),
        ([[1], [2, VOCAB]], GREEDY, "prompt 1: token id 257 is outside the vocabulary of 257"),
        ([[-1]], GREEDY, "token id -1 is outside"),
        ([[1] * 256], GREEDY, "prompt 0 has 256 tokens; with its answer it must fit into 256: .*allow_long"),
        ([[1]], replace(GREEDY, stop_tokens=(999,)), "stop_tokens: token id 999 is outside"),
        ([[1]], replace(GREEDY, stop=("x",)), "stop texts need a tokenizer"),
        ([[1]], replace(GREEDY, logprobs=258), "logprobs asks for 258 tokens of a vocabulary of 257"),
    ]:
        with pytest.raises(InputError, match=message):
            decode(model, prompts, [wish] * len(prompts))


def test_between_steps_gradients_are_on_and_what_was_cached_is_an_ordinary_tensor() -> None:
    model = tiny()
    cache = model.new_cache()
    for _ in decode(model, [[1, 2, 3]], [GREEDY], cache=cache):
        assert torch.is_grad_enabled()
    storage = cache.layers[0]
    assert isinstance(storage, Contiguous)
    assert storage.k is not None
    assert not storage.k.is_inference()
    assert not storage.k.requires_grad


def test_it_can_be_closed_at_any_time_and_broken_off_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(tiny().spec).train()
    expected = tokens(run(model, [[1, 2]], GREEDY))
    steps = decode(model, [[1, 2]], [GREEDY])
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    states = model.states

    def interrupt(*args: object) -> None:
        states(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model, "states", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(model, [[1, 2]], GREEDY)
    assert torch.is_grad_enabled()
    assert all(module.training for module in model.modules())
    assert tokens(run(model, [[1, 2]], GREEDY)) == expected


def test_a_model_in_training_mode_answers_without_dropout_and_stays_in_it() -> None:
    torch.manual_seed(0)
    model = Transformer(model_spec(embed=spec.Embed(dropout=0.5)))
    model.decoder.norm.eval()
    answers = {tuple(tokens(run(model, [[1, 2]], GREEDY))) for _ in range(3)}
    assert answers == {tuple(plain(model.eval(), [1, 2], 6)[0])}
    model.train()
    model.decoder.norm.eval()
    run(model, [[1, 2]], GREEDY)
    assert model.training
    assert not model.decoder.norm.training


def test_a_broken_model_is_an_error_and_not_a_text() -> None:
    model = Transformer(tiny().spec)
    with torch.no_grad():
        model.decoder.blocks[0].mixer.out.weight.fill_(float("nan"))
    with pytest.raises(WeightError, match="not numbers any more"):
        run(model, [[1, 2]], GREEDY)
