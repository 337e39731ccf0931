"""generate: every form of prompt, at once and in pieces; what can't be answered is an error first."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import InputError
from qkv.generate.generate import generate
from qkv.generate.result import Generation
from qkv.generate.settings import Settings
from qkv.inputs.train import train_tokenizer
from qkv.nn.stack import Transformer
from tests.generate.tiny import EOS, VOCAB, Bytes, ByteStream, model_spec, pair, tiny

GREEDY = Settings(max_tokens=5)


class Script(Transformer):
    """A model that says these bytes whatever it reads: the token at position p is followed by the p-th of them."""

    def __init__(self, said: bytes, prompt: int) -> None:
        super().__init__(tiny().spec)
        self.said, self.before = [*said, EOS], prompt - 1

    def states(self, stream: Any, batch: Any, cache: Any = None) -> Any:
        cache.advance(batch)
        return batch.positions[:, None].float()

    def logits(self, states: Any) -> Any:
        places = states[:, 0].long() - self.before
        ids = [self.said[i] if 0 <= i < len(self.said) else EOS for i in places.tolist()]
        return torch.nn.functional.one_hot(torch.tensor(ids), VOCAB).float()


def say(text: str | bytes, prompt: str = "p", **changes: Any) -> Any:
    """What `generate` makes of a model that wants to say this."""
    said = text.encode() if isinstance(text, str) else text
    wish = Settings(**{"stop_tokens": (EOS,), "max_tokens": 50, **changes})
    return generate(Script(said, len(prompt.encode())), Bytes(), prompt, wish)


@pytest.mark.parametrize("prompt", ["hi", [104, 105], (104, 105), torch.tensor([104, 105])])
def test_one_prompt_in_any_form_gives_one_generation(prompt: Any) -> None:
    made = generate(tiny(), Bytes(), prompt, GREEDY)
    assert isinstance(made, Generation)
    assert made.prompt_tokens == [104, 105]
    assert made.tokens == generate(tiny(), Bytes(), ["hi"], GREEDY)[0].tokens
    assert all(type(i) is int for i in (*made.tokens, *made.prompt_tokens))


@pytest.mark.parametrize(
    "prompts",
    [
        ["hi", "ho"],
        ("hi", "ho"),
        [[104, 105], [104, 111]],
        torch.tensor([[104, 105], [104, 111]]),
        [torch.tensor([104, 105]), torch.tensor([104, 111])],
        ["hi", [104, 111]],
    ],
)
def test_several_prompts_in_any_form_give_a_list_in_order(prompts: Any) -> None:
    made = generate(tiny(), Bytes(), prompts, GREEDY)
    assert [g.prompt_tokens for g in made] == [[104, 105], [104, 111]]
    assert [g.tokens for g in made] == [generate(tiny(), Bytes(), text, GREEDY).tokens for text in ("hi", "ho")]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt was given"),
        ("", "prompt 0 is empty"),
        (["hi", ""], "prompt 1 is empty"),
        ([[]], "prompt 0 is empty"),
        (torch.tensor([], dtype=torch.long), "prompt 0 is empty"),
        ([1, 2.5], "prompt 0 must hold token ids, which are whole numbers, got 2.5"),
        ([1, "a"], "prompt 0 must hold token ids, which are whole numbers, got 'a'"),
        ([[True]], "whole numbers, got True"),
        (torch.tensor([0.5]), "whole numbers, got 0.5"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"must be a row of token ids, got a tensor of shape \[2, 3\]"),
        (torch.tensor(3), r"must be a row of token ids, got a tensor of shape \[\]"),
        ([None], "must be text or token ids, got NoneType"),
        (5, "must be text or token ids, got int"),
        (None, "must be text or token ids, got NoneType"),
        ([VOCAB], "token id 257 is outside the vocabulary of 257"),
        ("x" * 300, "prompt 0 has 300 tokens; with its answer it must fit into 256"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_prompt_is_an_error_at_once(prompts: Any, message: str, stream: bool) -> None:
    with pytest.raises(InputError, match=message):
        generate(tiny(), Bytes(), prompts, GREEDY, stream=stream)


def test_an_encoder_decoder_answers_texts_in_any_form_and_in_pieces() -> None:
    prompts = ["hello there", "hi"]
    made = generate(pair("learned"), Bytes(), prompts, GREEDY)
    assert [g.prompt_tokens for g in made] == [list(text.encode()) for text in prompts]
    assert [g.text for g in made] == [Bytes().decode(g.tokens) for g in made]
    assert made[0].tokens != made[1].tokens
    assert generate(pair("learned"), None, list(b"hi"), GREEDY).tokens == made[1].tokens
    pieces = list(generate(pair("learned"), Bytes(), prompts, GREEDY, stream=True))
    assert ["".join(p for p in pieces if p.prompt_index == i) for i in range(2)] == [g.text for g in made]
    with pytest.raises(InputError, match="prompt 1 has 25 tokens; this model's encoder reads at most 24"):
        generate(pair("learned"), Bytes(), ["hi", "x" * 25], GREEDY, stream=True)


def test_an_empty_text_is_fine_where_the_tokenizer_puts_a_bos() -> None:
    class Bos(Bytes):
        def encode(self, text: str) -> list[int]:
            return [0, *super().encode(text)]

    assert generate(tiny(), Bos(), "", GREEDY).prompt_tokens == [0]


def test_without_a_tokenizer_ids_work_and_texts_do_not() -> None:
    made = generate(tiny(), None, [104, 105], GREEDY)
    assert made.text == ""
    assert made.tokens == generate(tiny(), Bytes(), "hi", GREEDY).tokens
    pieces = list(generate(tiny(), None, [104, 105], GREEDY, stream=True))
    assert [piece.tokens for piece in pieces] == [[i] for i in made.tokens]
    with pytest.raises(InputError, match="has no tokenizer, so a prompt must be token ids"):
        generate(tiny(), None, "hi", GREEDY)
    with pytest.raises(InputError, match="stop texts need a tokenizer"):
        generate(tiny(), None, [1], Settings(stop=("x",)))


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from(["", "café", "a b"]))
def test_with_a_real_tokenizer_prompt_and_answer_are_one_text(seed: int, prompt: str) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat, the café is naïve and 猫 sat too"] * 3, "bpe", 280)
    model = Transformer(model_spec(vocab=tokenizer.vocab_size)).eval()
    ids = tokenizer.encode(prompt) or tokenizer.encode("t")
    made = generate(model, tokenizer, ids, Settings(max_tokens=20, temperature=1, seed=seed))
    assert tokenizer.decode(ids) + made.text == tokenizer.decode([*ids, *made.tokens])


def test_pieces_of_several_prompts_are_the_generations() -> None:
    prompts = ["hello", "a longer prompt", "x"]
    wish = Settings(max_tokens=9, temperature=0.9, seed=1, logprobs=2, prefill_chunk=6)
    whole = generate(tiny(), Bytes(), prompts, wish)
    pieces = list(generate(tiny(), Bytes(), prompts, wish, stream=True))
    for i, made in enumerate(whole):
        own = [piece for piece in pieces if piece.prompt_index == i]
        assert "".join(own) == made.text
        assert [token for piece in own for token in piece.tokens] == made.tokens
        assert all(piece.generation is None for piece in own[:-1])
        last = own[-1].generation
        assert last is not None
        assert {**vars(last), "timing": None} == {**vars(made), "timing": None}
        assert all(own[:-1]), "only the last piece may be empty"


@settings(max_examples=20)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_every_text_comes_whole_in_pieces_of_whole_characters(text: str) -> None:
    made = say(text)
    assert (made.text, made.finish_reason, made.tokens) == (text, "stop", [*text.encode(), EOS])
    pieces = generate(Script(text.encode(), 1), Bytes(), "p", Settings(stop_tokens=(EOS,)), stream=True)
    assert all(text.startswith(so_far) for so_far in _growing(pieces))


def _growing(pieces: Iterable[str]) -> Iterable[str]:
    so_far = ""
    for piece in pieces:
        so_far += piece
        yield so_far


@pytest.mark.parametrize(
    ("said", "changes", "text", "reason", "count"),
    [
        ("hello", {}, "hello", "stop", 6),
        ("hello", {"max_tokens": 3}, "hel", "length", 3),
        ("hello", {"max_tokens": 5}, "hello", "length", 5),
        ("hello", {"max_length": 4, "max_tokens": None}, "hel", "length", 3),
        ("hello", {"stop": "l"}, "he", "stop", 3),
        ("a\n\nb", {"stop": ["\n\n"]}, "a", "stop", 3),
        ("a\n\nb", {"stop": ["\n\n"], "max_tokens": 2}, "a\n", "length", 2),
        ("a\n", {"stop": ["\n\n"]}, "a\n", "stop", 3),
        ("é", {"max_tokens": 1}, "\ufffd", "length", 1),
        ("héllo", {"stop": ["é"]}, "h", "stop", 3),
        ("hello", {"stop_tokens": (ord("l"),)}, "he", "stop", 3),
        ("hello", {"stop_tokens": (ord("l"),), "ignore_eos": True, "max_tokens": 5}, "hello", "length", 5),
        ("", {}, "", "stop", 1),
    ],
)
def test_how_an_answer_ends(said: str, changes: dict[str, Any], text: str, reason: str, count: int) -> None:
    made = say(said, **changes)
    assert (made.text, made.finish_reason, len(made.tokens)) == (text, reason, count)


def test_a_stop_text_is_never_shown_in_part() -> None:
    pieces = generate(Script(b"So it is.\nUser: next", 1), Bytes(), "p", Settings(stop=("\nUser:",)), stream=True)
    assert list(_growing(pieces))[-1] == "So it is."


def test_logprobs_are_one_a_token_as_far_as_asked() -> None:
    assert say("hi").logprobs is None
    made = say("hi", logprobs=True)
    assert len(made.logprobs) == 3
    assert made.top_logprobs is None
    made = say("hi", logprobs=4)
    assert [next(iter(top)) for top in made.top_logprobs] == made.tokens
    assert all(len(top) == 4 for top in made.top_logprobs)


def test_the_seed_of_each_answer_is_told_and_repeats_it() -> None:
    wish = Settings(max_tokens=9, temperature=1.5)
    first, second = generate(tiny(), Bytes(), ["hi", "hi"], wish)
    assert first.seed != second.seed
    assert first.tokens != second.tokens
    again = generate(tiny(), Bytes(), "hi", wish.replace(seed=second.seed))
    assert (again.tokens, again.seed) == (second.tokens, second.seed)
    assert generate(tiny(), Bytes(), "hi", GREEDY).seed is None


def test_the_decoder_is_told_the_prompt() -> None:
    contexts = []

    class Told(Bytes):
        def stream(self, *, context: Iterable[int] = ()) -> ByteStream:
            contexts.append(list(context))
            return super().stream()

    generate(tiny(), Told(), ["hi", "ho"], GREEDY)
    assert contexts == [[104, 105], [104, 111]]


def test_timing_counts_what_was_read() -> None:
    timing = say("hello", prompt="prompt").timing
    assert (timing.prompt_tokens, timing.decode_steps) == (6, 5)
    assert 0 < timing.prefill_seconds <= timing.first_token_seconds
    assert timing.decode_seconds > 0
    assert timing.tokens_per_second == 5 / timing.decode_seconds
    assert timing.bytes_read > 5 * sum(p.nbytes for p in tiny().parameters()) * 0.9
