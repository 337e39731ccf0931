"""What a model writes in evaluation: greedy, within its limits, of the tokens of training."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import qkv
from qkv import spec
from qkv.train import objectives, recipe
from qkv.train.predictions import Asked
from qkv.train.records import Placed
from qkv.train.written import CONTINUED, MORE, continued, translated
from tests.tiny import text_to_text, tiny_spec


def translator() -> qkv.Model:
    model = text_to_text()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    return model


def asked(model: Any, settings: Any, *records: dict[str, Any], metrics: tuple[str, ...] = ()) -> Asked:
    made = objectives.make(settings, model.spec, model.tokenizer, None)
    return Asked(model, made, [Placed(r, "x:1") for r in records], [made.encode(r) for r in records], metrics)


SOURCES = ("w3 w4 w5", "w9", "w7 w8 w7 w8 w11")


def test_translations_are_greedy_and_bounded() -> None:
    model = translator()
    model.generation = {"num_beams": 4, "max_length": 3, "early_stopping": True, "do_sample": True, "top_p": 0.5}
    settings = recipe.Translate(kind="seq2seq", prefix="w20 ")
    given = asked(model, settings, *({"source": s, "target": "w3"} for s in SOURCES), metrics=("bleu", "chrf"))
    found = translated(given)
    longest = 5 + 2  # prefix and end
    for shown, source in zip(found.shown, SOURCES, strict=True):
        want = model.generate(f"w20 {source}", temperature=0, beams=1, max_tokens=longest + MORE).text
        assert (shown.input, shown.predicted) == (source, want)
    assert found.values.keys() == found.said.keys() == {"bleu", "chrf"}
    alone = translated(replace(given, budget=1))  # each by itself: shorter limits, the same beginnings
    assert all(a.predicted.startswith(b.predicted) for a, b in zip(found.shown, alone.shown, strict=True))
    assert translated(asked(model, settings, {"source": "w3", "target": "w3"})).values == {}


def test_a_decoders_positions_bound_what_it_writes() -> None:
    decoder = spec.Stack(tiny_spec().decoder.blocks, 2, embed=spec.Embed(spec.Learned(12)))  # type: ignore[union-attr]
    model = qkv.Model(spec.Model(97, 16, decoder))
    model.tokenizer = text_to_text().tokenizer
    settings = recipe.Causal(kind="causal")
    found = continued(asked(model, settings, {"text": "w3 w4 w5 w6 w7 w8 w9"}))
    (shown,) = found.shown
    assert (shown.input, shown.expected) == ("w3 w4 w5", "w6 w7 w8 w9")


@pytest.mark.parametrize("answer", [None, "w6 w7"])
def test_a_language_model_goes_on(answer: str | None) -> None:
    model = qkv.Model(spec.Model(97, 16, tiny_spec().decoder))
    model.tokenizer = text_to_text().tokenizer
    record = {"text": "w3 w4 w5 w6", **({} if answer is None else {"answer": answer})}
    (shown,) = continued(asked(model, recipe.Causal(kind="causal"), record)).shown
    assert shown.input == ("w3 w4" if answer is None else "w3 w4 w5 w6")
    assert shown.expected == ("w5 w6" if answer is None else answer)
    assert model.tokenizer is not None
    prompt = model.tokenizer.encode(shown.input)
    assert shown.predicted == model.generate([prompt], temperature=0, max_tokens=CONTINUED)[0].text
