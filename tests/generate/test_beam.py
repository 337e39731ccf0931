"""Beam search: exact where the beams hold everything, the same alone and together. tests/families/test_beam.py holds
it to transformers."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from qkv.errors import InputError, WeightError
from qkv.generate.beam import beam_search
from qkv.generate.generate import generate
from qkv.generate.result import Beam, Generation
from qkv.generate.settings import Settings
from qkv.nn.stack import Transformer
from tests.generate.tiny import EOS, KINDS, VOCAB, Bytes, model_spec, pair, pair_spec, tiny

THREE = Settings(beams=3, n_best=3, max_tokens=5)
PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12), min_size=1, max_size=4)
SMALL = 4  # a vocabulary whose texts can all be counted


def search(model: Transformer, prompt: list[int], **changes: Any) -> Generation:
    return beam_search(model, [prompt], [Settings(**changes)])[0]


def plain(found: Generation) -> list[tuple[list[int], float, str]]:
    assert found.beams is not None
    return [(beam.tokens, round(beam.score, 3), beam.finish_reason) for beam in found.beams]


def small(pairs: bool) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(pair_spec("relative", vocab=SMALL) if pairs else model_spec(vocab=SMALL)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.4)
    return model


def logprob(model: Transformer, prompt: list[int], tokens: list[int]) -> list[float]:
    """Of each token, by the model over the whole text at once."""
    with torch.no_grad():
        if model.encoder is not None:
            rows = model([prompt], [[0, *tokens[:-1]]])[0]
        else:
            rows = model([[*prompt, *tokens[:-1]]])[0][len(prompt) - 1 :]
    return rows.log_softmax(-1)[range(len(tokens)), tokens].tolist()


def every_text(length: int, eos: int) -> Iterator[list[int]]:
    """All that a search could find: up to an eos, or of full length."""
    for tokens in product(range(SMALL), repeat=length):
        end = tokens.index(eos) + 1 if eos in tokens else length
        if all(token == 0 for token in tokens[end:]):
            yield list(tokens[:end])


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_a_search_as_wide_as_there_are_texts_is_exact(pairs: bool, length_penalty: float) -> None:
    model, prompt, count = small(pairs), [1, 2, 3], 4
    wish = {"length_penalty": length_penalty, "early_stopping": "never", "stop_tokens": (2,), "max_tokens": count}
    found = search(model, prompt, beams=SMALL**count, n_best=12, **wish)
    texts = [(sum(logprob(model, prompt, text)) / len(text) ** length_penalty, text) for text in every_text(count, 2)]
    best = sorted(texts, reverse=True)[:12]
    assert [beam.tokens for beam in found.beams] == [text for _, text in best]
    assert [beam.score for beam in found.beams] == pytest.approx([score for score, _ in best], abs=1e-4)


WORDS, LONGEST = 12, 9


class Table(Transformer):
    """The scores of the next token are those of the last token at its position: nothing else counts."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(model_spec(vocab=WORDS))
        self.scores = table

    def states(self, stream: Any, batch: Any, cache: Any = None, memory: Any = None) -> Any:
        cache.advance(batch)
        return torch.stack((batch.positions, stream), 1)

    def logits(self, states: Any) -> Any:
        return self.scores[states[:, 0], states[:, 1]]


class TheirTable(PreTrainedModel, GenerationMixin):
    """The same, for transformers."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, table: Tensor) -> None:
        super().__init__(PretrainedConfig(vocab_size=WORDS))
        self.one, self.scores = torch.nn.Parameter(torch.zeros(1)), table

    def forward(self, input_ids: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return CausalLMOutput(logits=self.scores[torch.arange(input_ids.shape[1]), input_ids])

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> Any:
        return {"input_ids": input_ids}


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
def test_every_rule_is_transformers(early_stopping: Any, length_penalty: float) -> None:
    """Random scores, so flat that each search has many texts that end and go on, some late and better."""
    rng = torch.Generator().manual_seed(int(10 * length_penalty) + 100)
    for case in range(16):
        table = torch.randn(LONGEST + 2, WORDS, WORDS, generator=rng)
        beams, ends = 2 + case % 4, (0, 1, 3, 6)[case // 4]
        wish = {"length_penalty": length_penalty, "early_stopping": early_stopping}
        more = {"beams": beams, "n_best": beams, "stop_tokens": tuple(range(ends)), "max_tokens": LONGEST}
        found = search(Table(table), [11, 10], **more, **wish)
        theirs = TheirTable(table).generate(
            torch.tensor([[11, 10]]),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=LONGEST,
            eos_token_id=list(range(ends)) or None,
            pad_token_id=0,
            do_sample=False,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
            **wish,
        )
        lengths = [len(beam.tokens) for beam in found.beams]
        texts = [row[2 : 2 + n].tolist() for row, n in zip(theirs.sequences, lengths, strict=True)]
        assert [beam.tokens for beam in found.beams] == texts
        assert [beam.score for beam in found.beams] == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)


@settings(max_examples=12)
@given(st.sampled_from(["relative", "learned", *KINDS]), PROMPTS, st.integers(1, 20), st.sampled_from([False, True]))
def test_one_result_alone_in_a_batch_and_in_any_chunks(
    kind: str, prompts: list[list[int]], chunk: int, early: bool
) -> None:
    model = tiny(kind) if kind in KINDS else pair(kind)
    wish = replace(THREE, early_stopping=early, stop_tokens=(3, 100, 200), no_repeat_ngram=2)
    alone = [plain(beam_search(model, [prompt], [wish])[0]) for prompt in prompts]
    together = beam_search(model, prompts, [replace(wish, prefill_chunk=chunk)] * len(prompts))
    assert [plain(found) for found in together] == alone


def test_settings_are_each_prompts_own() -> None:
    wishes = [THREE, replace(THREE, beams=5), replace(THREE, max_tokens=1), replace(THREE, length_penalty=-2.0)]
    together = beam_search(tiny(), [[1, 2]] * 4, wishes)
    for wish, found in zip(wishes, together, strict=True):
        assert plain(found) == plain(beam_search(tiny(), [[1, 2]], [wish])[0])


def test_finished_searches_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny(), []
    states = model.states
    monkeypatch.setattr(model, "states", lambda s, b, c: (rows.append(len(b.lengths)), states(s, b, c))[1])
    beam_search(model, [[1], [2]], [replace(THREE, max_tokens=2), THREE])
    assert rows == [2, 6, 3, 3, 3]


def test_the_generation_is_the_best_beam_with_its_logprobs() -> None:
    made = search(tiny(), [104, 105], beams=4, n_best=3, max_tokens=6, logprobs=2, length_penalty=0.5)
    best = made.beams[0]
    assert isinstance(best, Beam)
    assert len(made.beams) == 3
    assert (made.tokens, made.score, made.logprobs) == (best.tokens, best.score, best.logprobs)
    assert (made.finish_reason, made.top_logprobs, made.seed) == (best.finish_reason, best.top_logprobs, None)
    assert [beam.score for beam in made.beams] == sorted((beam.score for beam in made.beams), reverse=True)
    for beam in made.beams:
        assert beam.logprobs == pytest.approx(logprob(tiny(), [104, 105], beam.tokens), abs=1e-4)
        assert beam.logprob == pytest.approx(sum(beam.logprobs), abs=1e-4)
        assert beam.score == pytest.approx(beam.logprob / len(beam.tokens) ** 0.5)
        assert [len(top) for top in beam.top_logprobs] == [2] * 6
    assert search(tiny(), [104, 105], beams=4, max_tokens=6).beams[0].logprobs is None
    assert (made.timing.prompt_tokens, made.timing.decode_steps) == (2, 5)
    assert made.timing.tokens_per_second is not None


def test_one_beam_is_greedy_and_a_wider_search_finds_no_less() -> None:
    for prompt in ([1], [104, 105], [7, 7, 7]):
        narrow = generate(tiny(), None, prompt, Settings(max_tokens=5, logprobs=True))
        wide = search(tiny(), prompt, beams=6, max_tokens=5)
        assert wide.beams[0].logprob >= sum(narrow.logprobs) - 1e-5


def test_texts_are_the_tokenizers_and_stop_texts_end_them() -> None:
    letters = replace(THREE, max_tokens=8, suppress=tuple(range(128, 256)))
    free = generate(tiny(), Bytes(), "hi", letters)
    assert [beam.text for beam in free.beams] == [Bytes().decode(beam.tokens) for beam in free.beams]
    stop = Bytes().decode(free.beams[0].tokens)[1:3]
    made = generate(tiny(), Bytes(), "hi", replace(letters, stop=(stop,)))
    ended = [beam for beam in made.beams if beam.finish_reason == "stop"]
    assert ended
    for beam in made.beams:
        assert stop not in beam.text
        assert (stop in Bytes().decode(beam.tokens)) == (beam.finish_reason == "stop")


def test_an_eos_is_among_the_tokens_and_not_in_the_text() -> None:
    free = generate(tiny(), Bytes(), "hi", THREE)
    ends = tuple({beam.tokens[2] for beam in free.beams})
    made = generate(tiny(), Bytes(), "hi", replace(THREE, stop_tokens=(*ends, EOS)))
    ended = [beam for beam in made.beams if beam.finish_reason == "stop"]
    assert ended
    for beam in ended:
        assert beam.tokens[-1] in ends
        assert beam.text == Bytes().decode(beam.tokens[:-1])
    assert plain(generate(tiny(), Bytes(), "hi", replace(THREE, stop_tokens=ends, ignore_eos=True))) == plain(free)


def test_fewer_texts_than_asked_are_all_there_are() -> None:
    found = search(tiny(), [1, 2], beams=4, n_best=4, max_tokens=1, suppress=tuple(range(3, VOCAB)))
    assert sorted(beam.tokens for beam in found.beams) == [[0], [1], [2]]


def test_nothing_left_to_choose_and_broken_weights_are_errors() -> None:
    with pytest.raises(InputError, match="nothing is left for token 1 of the answer"):
        search(tiny(), [1], beams=2, suppress=tuple(range(VOCAB)))
    with pytest.raises(InputError, match=r"nothing is left for token 4 of the answer: .*no_repeat_ngram"):
        search(small(pairs=False), [1], beams=2, no_repeat_ngram=1)
    model = Transformer(tiny().spec)
    with torch.no_grad():
        model.decoder.blocks[0].mixer.out.weight.fill_(float("nan"))
    with pytest.raises(WeightError, match="not numbers any more"):
        search(model, [1, 2], beams=2)


def test_a_search_neither_streams_nor_takes_a_cache() -> None:
    with pytest.raises(InputError, match=r"3 beams \(given\) knows its text only at the end, so it can't stream"):
        generate(tiny(), None, [1], THREE, stream=True)
    with pytest.raises(InputError, match="takes no cache: give beams=1"):
        generate(tiny(), None, [1], THREE, cache=tiny().new_cache())


def test_several_prompts_give_a_list_and_one_gives_one() -> None:
    made = generate(tiny(), Bytes(), ["hi", "hello"], THREE)
    assert [found.prompt_tokens for found in made] == [list(b"hi"), list(b"hello")]
    assert plain(generate(tiny(), Bytes(), "hi", THREE)) == plain(made[0])


def test_a_forced_eos_is_the_limits_and_not_the_models_end() -> None:
    made = search(tiny(), [104], beams=3, n_best=3, max_tokens=3, stop_tokens=(EOS,), forced_last=EOS)
    assert {(len(beam.tokens), beam.tokens[-1], beam.finish_reason) for beam in made.beams or ()} == {
        (3, EOS, "length")
    }
