"""The facade, and the default model against transformers on the same file."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models

import qkv
from qkv.errors import ConfigError, InputError
from qkv.inputs.text import Tokenizer
from tests.tiny import text_to_text

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Q: What is 17 + 25?\nA:",
    "Der Himmel ist blau, weil",
]


@pytest.fixture(scope="module")
def smollm2() -> Any:
    """The real default model: fetched as a user's first command would, then cached."""
    offline = os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        return qkv.load("smollm2", dtype="float32")
    finally:
        if offline is not None:
            os.environ["HF_HUB_OFFLINE"] = offline


@pytest.fixture(scope="module")
def theirs(smollm2: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = smollm2.source.path.parent, smollm2.source.path.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file)


def test_64_greedy_tokens_on_five_prompts_are_transformers(smollm2: Any, theirs: tuple[Any, Any]) -> None:
    model, tokenizer = theirs
    model.generation_config.eos_token_id = None  # read on, as ours
    ours = smollm2.generate(PROMPTS, max_tokens=64, temperature=0, ignore_eos=True)
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=64, do_sample=False)
        assert answer.prompt_tokens == ids[0].tolist()
        assert answer.tokens == out[0, ids.shape[1] :].tolist()
        alone = smollm2.generate(prompt, max_tokens=64, temperature=0, ignore_eos=True)
        assert alone.tokens == answer.tokens


def test_packed_it_says_almost_the_same(smollm2: Any) -> None:
    packed = qkv.load(smollm2.source.path)
    assert any("stay packed" in note for note in packed.notes)
    ids = [smollm2.tokenizer.encode(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        for row in ids:
            whole, exact = packed(torch.tensor([row])), smollm2(torch.tensor([row]))
            assert (whole - exact).norm() / exact.norm() < 0.1
            cache = packed.new_cache()
            steps = torch.cat([packed(torch.tensor([[i]]), cache=cache) for i in row], 1)
            assert (steps - exact).norm() / exact.norm() < 0.1  # activations in int8
    greedy = {"max_tokens": 16, "temperature": 0, "ignore_eos": True}
    ours, theirs = packed.generate(PROMPTS, **greedy), smollm2.generate(PROMPTS, **greedy)
    assert sum(a.tokens[:4] == b.tokens[:4] for a, b in zip(ours, theirs, strict=True)) >= 3


def test_the_chat_template_is_transformers(smollm2: Any, theirs: tuple[Any, Any]) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    expected = theirs[1].apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert smollm2.tokenizer.chat(messages) == list(expected)
    assert "Paris" in smollm2.chat(messages, max_tokens=32).text


def test_streaming_gives_the_same_text(smollm2: Any) -> None:
    whole = smollm2.generate(PROMPTS[0], max_tokens=16)
    assert "".join(smollm2.generate(PROMPTS[0], max_tokens=16, stream=True)) == whole.text
    assert len(whole.tokens) == 16
    assert whole.finish_reason == "length"


def test_attention_of_the_real_model_sums_to_one(smollm2: Any) -> None:
    ids = torch.tensor([smollm2.tokenizer.encode(PROMPTS[0])])
    with torch.no_grad(), qkv.record(smollm2, attention=True) as tape:
        smollm2(ids)
    assert len(tape.attention) == 30
    assert tape.attention[0].shape == (9, ids.shape[1], ids.shape[1])
    torch.testing.assert_close(tape.attention[7].sum(-1), torch.ones(9, ids.shape[1]))


def test_saved_as_a_folder_it_is_the_same_model(smollm2: Any, theirs: tuple[Any, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = qkv.save(smollm2, tmp_path / "saved", dequantize=True)
    ids = theirs[1](PROMPTS[2], return_tensors="pt").input_ids
    with torch.no_grad():
        assert AutoTokenizer.from_pretrained(folder)(PROMPTS[2]).input_ids == ids[0].tolist()
        again = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
        torch.testing.assert_close(again, theirs[0](ids).logits, atol=1e-4, rtol=0)
        reloaded = qkv.load(folder)
        torch.testing.assert_close(reloaded(ids), again, atol=1e-4, rtol=0)
    assert reloaded.generate(PROMPTS[0], max_tokens=8).text == smollm2.generate(PROMPTS[0], max_tokens=8).text


def test_a_fresh_model_has_no_tokenizer_and_says_so() -> None:
    from qkv.families.llama import FAMILY

    model = qkv.Model(FAMILY.spec(FAMILY.tiny))
    with pytest.raises(InputError, match="tokenizer"):
        model.chat([{"role": "user", "content": "hello"}])
    with pytest.raises(InputError, match="tokenizer"):
        model.generate("hello")
    assert len(model.generate([1, 2, 3], max_tokens=4).tokens) == 4


def test_text_to_text_by_task() -> None:
    model = text_to_text()
    asked = model.generate("w5 w6", task="turn")
    assert asked.prompt_tokens == [9, 8, 5, 6, 1]
    assert asked.beams is not None
    assert asked.beams[0].text == asked.text
    assert len(asked.tokens) <= 5  # max_length counts the start token
    by_hand = model.generate("w9 w8 w5 w6", beams=3, early_stopping=True, max_tokens=5)
    assert by_hand.tokens == asked.tokens
    assert model.generate(["w5 w6", "w7"], task="turn")[0].tokens == asked.tokens
    assert model.settings("turn", beams=2).beams == 2
    with pytest.raises(InputError, match="no task 'turns': it has turn"):
        model.generate("w5", task="turns")
    with pytest.raises(InputError, match=r"no task 'turn': its config.json names none"):
        qkv.Model(model.spec).generate([5], task="turn")
    with pytest.raises(InputError, match="give texts and not ids"):
        model.generate([5, 6], task="turn")
    model.tasks = {"turn": {"prefix": 9}}
    with pytest.raises(ConfigError, match="the task 'turn': its prefix must be a text, got 9"):
        model.generate("w5", task="turn")


def test_an_encoder_decoder_answers_like_transformers() -> None:
    """The whole way for T5: ids in, greedy and beams out, by the model's own start token and end."""
    from tests.families.reference import case

    made = case("t5", "tiny")
    model = qkv.Model(made.ours.spec)
    model.load_state_dict(made.ours.state_dict())
    model.eval()
    model.generation = {"decoder_start_token_id": 0, "eos_token_id": 1}
    for beams in (1, 4):
        ours = model.generate([5, 6, 7, 8, 1], max_tokens=12, beams=beams)
        theirs = made.theirs.generate(
            torch.tensor([[5, 6, 7, 8, 1]]), max_new_tokens=12, num_beams=beams, do_sample=False
        )
        assert ours.tokens == theirs[0, 1:].tolist()[: len(ours.tokens)]


def test_minilm_is_sentence_transformers(minilm: Any) -> None:
    assert minilm.embed("one text").shape == (384,)
    with pytest.raises(InputError, match="has no decoder"):
        minilm.generate("hello")
    with pytest.raises(InputError, match="whose head is Pool: embed makes vectors with it"):
        minilm.predict("hello")


@pytest.fixture(scope="module")
def minilm() -> Any:
    offline = os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        return qkv.load("minilm")
    finally:
        if offline is not None:
            os.environ["HF_HUB_OFFLINE"] = offline


def test_guesses_of_a_text_or_a_draft_change_no_answer() -> None:
    model, draft = text_to_text(), text_to_text()
    plain = model.generate(["w5 w6 w5 w6", "w7"], max_tokens=12, logprobs=True)
    for how in ({"lookup": True}, {"lookup": 3}, {"draft": draft}):
        found = model.generate(["w5 w6 w5 w6", "w7"], max_tokens=12, logprobs=True, **how)
        assert [a.tokens for a in found] == [a.tokens for a in plain]
        assert [a.logprobs for a in found] == [pytest.approx(a.logprobs, abs=1e-5) for a in plain]
        pieces = list(model.generate("w5 w6 w5 w6", max_tokens=12, stream=True, **how))
        assert "".join(pieces) == plain[0].text
        assert pieces[-1].generation.tokens == plain[0].tokens


def test_a_draft_has_the_same_tokens() -> None:
    model, draft = text_to_text(), text_to_text()
    words = {name: id for id, name in enumerate(["<pad>", "</s>", "<unk>", *(f"v{i}" for i in range(3, 97))])}
    draft.tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel(words, "<unk>")), eos="</s>")
    with pytest.raises(InputError, match="the draft's tokenizer gives other ids than the model's"):
        model.generate("w5", draft=draft)
    draft.tokenizer = None
    assert model.generate("w5", draft=draft, max_tokens=3).tokens == model.generate("w5", max_tokens=3).tokens
    small = qkv.Model(replace(model.spec, vocab=50))
    with pytest.raises(InputError, match="the draft has a vocabulary of 50 tokens and the model one of"):
        model.generate("w5", draft=small)
