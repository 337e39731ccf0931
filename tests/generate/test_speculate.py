"""Guesses change how many steps an answer takes, and nothing else: any guesses, of anything that generates."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv import spec
from qkv.errors import InputError
from qkv.generate.decode import Step, decode
from qkv.generate.generate import generate
from qkv.generate.request import Request
from qkv.generate.sample import distribution
from qkv.generate.settings import Settings
from qkv.generate.speculate import MOST, RETRY, Draft, Guesser, Lookup, Pace
from qkv.nn.stack import Transformer
from tests.generate.tiny import EOS, KINDS, VOCAB, Bytes, model_spec, pair, tiny

GREEDY = Settings(max_tokens=12, logprobs=3)
SAMPLED = replace(GREEDY, temperature=0.8, top_k=40, top_p=0.95, seed=3)
Idea = Callable[[Sequence[int], int], list[int]]


class Told:
    """A guesser whose guesses are a function of ids and count."""

    def __init__(self, idea: Idea, most: int = 5) -> None:
        self.propose, self.most, self.cost = idea, most, 0.0

    def begin(self, *_: object) -> "Told":
        return self


def knowing(answers: dict[tuple[int, ...], list[int]], wrong_every: int = 0) -> Told:
    """What comes of prompts is known; every so many-th guess is wrong."""

    def idea(ids: Sequence[int], count: int) -> list[int]:
        prompt, answer = next((p, a) for p, a in answers.items() if tuple(ids[: len(p)]) == p)
        told = answer[len(ids) - len(prompt) :][:count]
        return [(i + 1) % VOCAB if wrong_every and n % wrong_every == 0 else i for n, i in enumerate(told)]

    return Told(idea)


def tokens(steps: Sequence[Step], index: int = 0) -> list[int]:
    return [step.choice.token for step in steps if step.index == index]


def run(model: Transformer, prompts: list[list[int]], wish: Settings, guesser: Guesser | None = None) -> list[Step]:
    return list(decode(model, prompts, [wish] * len(prompts), decoder=lambda _: Bytes().stream(), guesser=guesser))


def same(found: list[Step], expected: list[Step]) -> None:
    """Each answer has the same tokens, texts, log-probabilities and end."""
    for index in {step.index for step in expected}:
        one, other = ([s for s in steps if s.index == index] for steps in (found, expected))
        assert [s.choice.token for s in one] == [s.choice.token for s in other]
        assert [s.text for s in one] == [s.text for s in other]
        for a, b in zip(one, other, strict=True):
            assert a.choice.logprob == pytest.approx(b.choice.logprob, abs=1e-5)
            assert (a.end and (a.end.finish_reason, a.end.seed)) == (b.end and (b.end.finish_reason, b.end.seed))
        end = one[-1].end
        assert end is not None
        assert len(one) == 1 + end.timing.decode_steps + end.timing.accepted
        assert 0 <= end.timing.accepted <= end.timing.guessed


WISHES = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "penalties": replace(SAMPLED, repetition_penalty=1.3, no_repeat_ngram=2, min_tokens=4, suppress=(3,)),
    "forced": replace(GREEDY, forced_last=EOS, stop_tokens=(EOS,), suppress_first=(5,)),
}
PIECES = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)
REPEATING = st.builds(  # as much as the pair with learned positions reads
    lambda piece, times, rest: (piece * times + rest)[-24:], PIECES, st.integers(1, 4), PIECES
)


@pytest.mark.parametrize("kind", [*KINDS, "relative pair", "learned pair"])
@settings(max_examples=12)
@given(
    prompts=st.lists(REPEATING, min_size=1, max_size=3),
    wish=st.sampled_from(sorted(WISHES)),
    ends=st.lists(st.integers(0, VOCAB - 1), max_size=12),
    stops=st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz "), max_size=6, unique=True),
    limit=st.integers(1, 12),
    chunk=st.sampled_from([1, 2, 3, 7, 512]),
    how=st.sampled_from(["random", "right", "wrong", "every third", "lookup", "itself", "another"]),
    seed=st.integers(0, 9),
)
def test_any_guesses_give_the_same_answer(  # type: ignore[no-untyped-def]
    kind: str, prompts, wish, ends, stops, limit, chunk, how, seed
) -> None:
    """Stop tokens, stop texts and limits fall wherever they fall."""
    model = pair(kind.split()[0]) if kind.endswith("pair") else tiny(kind)
    wished = WISHES[wish]
    wished = replace(wished, max_tokens=max(limit, wished.min_tokens), prefill_chunk=chunk, stop=tuple(stops))
    wished = replace(wished, stop_tokens=(*wished.stop_tokens, *ends))
    expected = run(model, prompts, wished)
    begun = [[0] if kind.endswith("pair") else prompt for prompt in prompts]
    answers = {tuple(prompt): tokens(expected, i) for i, prompt in enumerate(begun)}
    chance = random.Random(seed)
    guesser: Guesser = {
        "random": Told(lambda ids, count: [chance.randrange(VOCAB) for _ in range(chance.randint(0, count + 3))]),
        "right": knowing(answers),
        "wrong": knowing(answers, 1),
        "every third": knowing(answers, 3),
        "lookup": Lookup(4, 2, 1),
        "itself": Draft(model, 3),
        "another": Draft(other(kind), 3),
    }[how]
    if len(answers) < len(prompts) and how in ("right", "wrong", "every third"):
        guesser = knowing({tuple(begun[0]): tokens(expected)})  # of prompts that begin alike
    same(run(model, prompts, wished, guesser), expected)


def other(kind: str) -> Transformer:
    """Another model of the same vocabulary, which is not always wrong."""
    if kind.endswith("pair"):
        return pair("relative" if kind.startswith("learned") else "learned")
    return tiny("alibi" if kind == "window" else "window")


def answer(model: Transformer, prompt: list[int], wish: Settings) -> tuple[list[Step], Told]:
    steps = run(model, [prompt], wish)
    return steps, knowing({tuple(prompt): tokens(steps)})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wish", [GREEDY, SAMPLED])
def test_right_guesses_save_steps(kind: str, wish: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = tiny(kind), list(b"attention")
    expected, guesser = answer(model, prompt, wish)
    states, sizes = model.states, []
    monkeypatch.setattr(model, "states", lambda s, b, c: (sizes.append(len(s)), states(s, b, c))[1])
    found = run(model, [prompt], wish, guesser)
    same(found, expected)
    assert sizes == [9, 6, 5]  # the prompt; a token and 5 guesses; another with the 4 that the limit leaves
    timing = found[-1].end.timing  # type: ignore[union-attr]
    assert (timing.decode_steps, timing.guessed, timing.accepted) == (2, 9, 9)


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    for wish in (GREEDY, SAMPLED, WISHES["penalties"]):
        found = run(tiny(), [list(b"attention")], wish, Free(tiny(), 5))
        same(found, run(tiny(), [list(b"attention")], wish))
        timing = found[-1].end.timing  # type: ignore[union-attr]
        assert timing.accepted == timing.guessed == 9


class Free(Draft):
    """A draft that costs nothing, so that it is asked each time."""

    def begin(self, *args: object) -> object:  # type: ignore[override]
        guess = super().begin(*args)  # type: ignore[arg-type]
        guess.cost = 0.0
        return guess


def test_what_ends_an_answer_inside_a_guess_ends_it_there() -> None:
    model, prompt = tiny(), list(b"abc")
    free = tokens(run(model, [prompt], GREEDY))
    for at in range(1, 12):
        for wish in (replace(GREEDY, stop_tokens=(free[at],)), replace(GREEDY, max_tokens=at + 1)):
            expected = run(model, [prompt], wish)
            guesser = knowing({tuple(prompt): free})
            cache = model.new_cache()
            found = list(
                decode(model, [prompt], [wish], decoder=lambda _: Bytes().stream(), cache=cache, guesser=guesser)
            )
            same(found, expected)
            assert cache.lengths == [len(prompt) + len(found) - 1]
    text = "".join(s.text for s in run(model, [prompt], GREEDY))
    for at in range(1, len(text) - 1):
        wish = replace(GREEDY, stop=(text[at : at + 2],))
        same(run(model, [prompt], wish, knowing({tuple(prompt): free})), run(model, [prompt], wish))


@pytest.mark.parametrize("kind", ["rotary", "window"])
def test_a_cache_that_is_given_goes_on_with_guesses_too(kind: str) -> None:
    model, prompt, wish = tiny(kind), list(b"hello there"), replace(GREEDY, max_tokens=6)
    for guesser in (Told(lambda ids, count: [7] * count), Lookup(3, 1, 1), Free(model, 4)):
        cache, text = model.new_cache(), prompt
        for _ in range(4):
            found = list(decode(model, [text], [wish], cache=cache, guesser=guesser))
            assert tokens(found) == tokens(run(model, [text], wish))
            assert cache.lengths == [len(text) + 5]
            text = [*text, *tokens(found), *b" more"]
    used = model.new_cache()  # which had no room reserved
    model([prompt[:8]], cache=used)
    found = list(decode(model, [prompt], [wish], cache=used, guesser=Told(lambda ids, count: [7] * count)))
    assert tokens(found) == tokens(run(model, [prompt], wish))


def test_a_batch_guesses_each_row_by_itself_within_what_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wish = tiny(), replace(GREEDY, prefill_chunk=10)
    prompts = [[1, 2, 3], [4] * 4, [5, 6]]
    expected = run(model, prompts, wish)
    states, sizes = model.states, []
    monkeypatch.setattr(model, "states", lambda s, b, c: (sizes.append(len(s)), states(s, b, c))[1])
    guesser = knowing({tuple(prompt): tokens(expected, i) for i, prompt in enumerate(prompts)})
    same(run(model, prompts, wish, guesser), expected)
    assert max(sizes) == 10
    assert sizes[1] == 10
    assert len(sizes) < 7


def test_a_guess_outside_the_vocabulary_is_an_error() -> None:
    for wrong in (VOCAB, -1):
        with pytest.raises(InputError, match=f"a guess: token id {wrong} is outside the vocabulary of {VOCAB}"):
            run(tiny(), [[1, 2]], GREEDY, Told(lambda ids, count, wrong=wrong: [wrong]))  # type: ignore[misc]


def test_samples_have_the_models_own_distribution() -> None:
    """Second tokens behind a first one that a guess has confirmed, over seeds, against the exact probabilities."""
    torch.manual_seed(0)
    model = Transformer(replace(model_spec(), vocab=5)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.4)
    wish, n = Settings(max_tokens=3, temperature=1.0), 1500
    counts: Counter[tuple[int, ...]] = Counter()
    guessed = 0
    for start in range(0, n, 100):
        wishes = [replace(wish, seed=seed) for seed in range(start, start + 100)]
        steps = list(decode(model, [[1, 2]] * 100, wishes, guesser=Told(lambda ids, count: [(ids[-1] + 1) % 5], 1)))
        counts.update(tuple(tokens(steps, i)) for i in range(100))
        guessed += sum(s.end.timing.accepted for s in steps if s.end is not None)
    assert guessed > 100
    chi = 0.0
    with torch.no_grad():
        first = model([[1, 2]])[0][-1].softmax(0)
        for a in range(5):
            second = distribution(model([[1, 2, a]])[0][-1], wish)[1]
            for b in range(5):
                expected = n * float(first[a] * second[b])
                chi += (sum(c for t, c in counts.items() if t[:2] == (a, b)) - expected) ** 2 / expected
    assert chi < 51.2  # 24 degrees of freedom: beyond this one in a thousand


# --- where guesses come from ----------------------------------------------------------------------------------------


def plain_lookup(text: list[int], count: int, ngram: int, least: int) -> list[int]:
    """By its definition: the latest earlier place of the longest run."""
    for n in range(ngram, least - 1, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if len(text) > n and text[end - n : end] == text[-n:]:
                told = list(text)
                for i in range(count):
                    told.append(told[end + i])
                return told[len(text) :]
    return []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 6),
    st.data(),
)
def test_a_lookup_is_its_definition_however_the_text_grows(text, ngram, least, count, data) -> None:  # type: ignore[no-untyped-def]
    ngram, least = max(ngram, least), min(ngram, least)
    source = data.draw(st.lists(st.integers(0, 3), max_size=6))
    guess = Lookup(count, ngram, least).begin(tiny(), request(source), None)
    cuts = sorted({*data.draw(st.lists(st.integers(1, len(text)), max_size=5)), len(text)})
    for cut in cuts:
        assert guess.propose(text[:cut], count) == plain_lookup(source + text[:cut], count, ngram, least)


def request(source: list[int]) -> Request:
    return Request(0, source, [0], 5, GREEDY, None)


def test_a_lookup_of_a_text_that_repeats_saves_steps() -> None:
    """Its greedy answers often fall into a loop."""
    wish = replace(GREEDY, max_tokens=60)
    found = run(tiny(), [[65] * 20], replace(wish, lookup=True))
    same(found, run(tiny(), [[65] * 20], wish))
    timing = found[-1].end.timing  # type: ignore[union-attr]
    assert timing.guessed > 0


def test_a_lookup_copies_from_what_an_encoder_reads() -> None:
    guess = Lookup(4, 2, 2).begin(pair(), request([7, 8, 9, 10, 11]), None)
    assert guess.propose([0, 8, 9], 2) == [10, 11]


@pytest.mark.parametrize(("most", "ngram", "least"), [(0, 3, 2), (4, 1, 2), (4, 3, 0)])
def test_a_lookup_of_nothing_is_refused(most: int, ngram: int, least: int) -> None:
    with pytest.raises(InputError, match="a lookup needs"):
        Lookup(most, ngram, least)


def test_a_draft_that_does_not_fit_is_refused_before_anything_is_computed() -> None:
    small = Transformer(replace(model_spec(), vocab=VOCAB - 1))
    encoder = Transformer(
        spec.Model(
            VOCAB,
            32,
            None,
            spec.Stack((spec.Block(spec.Attention(4, 4, mask=spec.Full()), spec.Plain(8), spec.RMS()),), 1),
            head=spec.States(),
        )
    )
    for draft, message in (
        (small, "the draft has a vocabulary of 256 tokens and the model one of 257"),
        (pair(), "draft and model must both have an encoder"),
        (encoder, "can't generate"),
    ):
        with pytest.raises(InputError, match=message):
            decode(tiny(), [[1]], [GREEDY], guesser=Draft(draft))
    with pytest.raises(InputError, match=r"lookup \(given\) and a draft both guess what comes: choose one"):
        decode(tiny(), [[1]], [replace(GREEDY, lookup=4)], guesser=Draft(tiny()))
    with pytest.raises(InputError, match=r"2 beams \(given\) guesses nothing: give beams=1, or no draft"):
        generate(tiny(), None, [1], Settings(beams=2), guesser=Draft(tiny()))
    with pytest.raises(InputError, match=r"a search of 2 beams \(given\) guesses nothing: give beams=1, or no lookup"):
        Settings(beams=2, lookup=True)


def test_a_draft_of_a_shorter_context_stops_guessing_there() -> None:
    wish = replace(GREEDY, max_tokens=30)
    prompt = list(range(50))
    found = run(tiny(), [prompt], wish, Free(tiny("learned"), 4))
    same(found, run(tiny(), [prompt], wish))
    assert 0 < found[-1].end.timing.guessed <= 14 * 4  # type: ignore[union-attr]


def test_a_draft_whose_settings_leave_nothing_of_a_guess_stops_there() -> None:
    """The draft goes where the model doesn't, and there nothing would be left to choose."""
    torch.manual_seed(0)
    model, draft = (Transformer(replace(model_spec(), vocab=6)).eval() for _ in range(2))
    wish = Settings(max_tokens=5, no_repeat_ngram=1)
    found = list(decode(model, [[1]], [wish], guesser=Free(draft, 8)))
    assert tokens(found) == tokens(list(decode(model, [[1]], [wish])))


# --- how many -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 16), st.floats(0.01, 1.5), st.lists(st.integers(0, 16), max_size=60))
def test_a_pace_stays_within_its_bounds(most: int, cost: float, rights: list[int]) -> None:
    pace = Pace(most, cost)
    for right in rights:
        count = pace.next()
        assert 0 <= count <= most
        if count:
            pace.learn(count, min(right, count))


def test_a_pace_stops_where_guesses_are_wrong_tries_now_and_then_and_comes_back() -> None:
    pace, counts = Pace(MOST, 0.25), []
    for _ in range(20):
        if count := pace.next():
            pace.learn(count, 0)
        counts.append(count)
    assert counts[0] == MOST
    assert counts[:4] == sorted(counts[:4], reverse=True)
    assert sum(counts) < 2 * MOST
    later = []
    for _ in range(10 * RETRY):
        if count := pace.next():
            pace.learn(count, 0)
        later.append(count)
    assert 9 <= sum(later) <= 10
    for _ in range(RETRY + 12):
        if count := pace.next():
            pace.learn(count, count)
    assert pace.next() == MOST


def test_a_draft_as_large_as_its_model_does_not_pay() -> None:
    found = run(tiny(), [[1, 2, 3]], replace(GREEDY, max_tokens=40), Draft(tiny()))
    timing = found[-1].end.timing  # type: ignore[union-attr]
    assert timing.guessed <= 40 // RETRY
