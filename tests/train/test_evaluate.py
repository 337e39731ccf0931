"""Evaluation: exact sums whatever the batches, predictions that are worth what is said, the model as it was."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import qkv
from qkv import spec
from qkv.errors import ConfigError, InputError
from qkv.train import objectives, recipe
from qkv.train.evaluate import Evaluator
from qkv.train.records import Bad, Placed
from tests.tasks.fakes import wordpiece
from tests.tiny import text_to_text, tiny_spec
from tests.train.heads import encoder

TEXTS = ["Paris is the capital", "Berlin", "Anna Smith lives in New York with Bob", "who?", "the answer is unknown"]


def placed(records: Sequence[dict[str, Any]]) -> list[Placed]:
    return [Placed(record, f"data.jsonl:{i + 1}") for i, record in enumerate(records)]


def evaluator(
    model: Any, settings: recipe.Objective, records: Sequence[dict[str, Any]], length: int | None = None, **eval_: Any
) -> Evaluator:
    options = {name: eval_.pop(name) for name in ("bad", "batch", "seed", "feeds", "budget") if name in eval_}
    packed = "batch" in options and options["batch"].packing != "none"
    objective = objectives.make(settings, model.spec, model.tokenizer, length, packed=packed)
    return Evaluator(recipe.Evaluate(**eval_), objective, placed(records), **options)


def decoder() -> qkv.Model:
    """A decoder that reads words."""
    model = text_to_text()
    made = qkv.Model(spec.Model(97, 16, tiny_spec().decoder))
    made.tokenizer = model.tokenizer
    return made


def labelled() -> list[dict[str, Any]]:
    return [{"text": text, "label": "bad" if i % 2 else "good"} for i, text in enumerate(TEXTS)]


def test_the_loss_is_an_exact_mean() -> None:
    """Over all targets, however they are batched, without dropout and smoothing."""
    model = encoder(spec.Classify(("bad", "good"), dropout=0.5)).train()
    settings = recipe.ClassifyTexts(kind="classify", smoothing=0.3)
    tests = evaluator(model, settings, labelled(), metrics=("loss",))
    got = tests.run(model).values
    assert model.training
    model.eval()
    want = 0.0
    for record in labelled():
        encoded = wordpiece().encode_with_offsets(record["text"])
        out = model([encoded.ids], segments=[encoded.segments])[0]
        want += float(F.cross_entropy(out, torch.tensor(int(record["label"] == "good"))).detach())
    assert got == {"loss": pytest.approx(want / 5, rel=1e-5)}
    small = evaluator(model, settings, labelled(), metrics=("loss",), budget=15)
    assert len(list(small.feeds())) > len(list(tests.feeds())) == 1
    assert small.run(model).values == pytest.approx(got, rel=1e-5)


def test_labels() -> None:
    model = encoder(spec.Classify(("bad", "good")))
    found = evaluator(model, recipe.ClassifyTexts(kind="classify"), labelled()).run(model)
    guess = [one.label for one in model.predict(TEXTS)]
    right = [record["label"] for record in labelled()]
    assert found.values["accuracy"] == sum(a == b for a, b in zip(right, guess, strict=True)) / 5
    assert set(found.values) == {"loss", "accuracy", "f1_macro", "matthews", "f1"}
    assert [(one.input, one.expected, one.predicted) for one in found.samples] == list(
        zip(TEXTS[:3], right[:3], guess[:3], strict=True)
    )


@pytest.mark.parametrize(
    ("problem", "label", "names"),
    [
        ("multi", ["good"], {"loss", "f1_micro", "accuracy"}),
        ("regression", [0.5, 2], {"loss", "spearman", "pearson", "mse"}),
    ],
)
def test_several_labels_and_quantities(problem: Any, label: Any, names: set[str]) -> None:
    model = encoder(spec.Classify(("bad", "good"), problem=problem))
    records = [{"text": text, "label": label if i else label[:1] * 2} for i, text in enumerate(TEXTS)]
    found = evaluator(model, recipe.ClassifyTexts(kind="classify", problem=problem), records).run(model)
    assert set(found.values) == names
    if problem == "regression":
        truth = torch.tensor([record["label"] for record in records])
        said = torch.tensor([[one.scores[name] for name in ("bad", "good")] for one in model.predict(TEXTS)])
        assert found.values["mse"] == pytest.approx(float(F.mse_loss(said, truth)), rel=1e-5)
        assert found.values["loss"] == pytest.approx(found.values["mse"], rel=1e-5)


def test_tags() -> None:
    """A model that says what is right has all of them, however long the text; one cut off has not."""
    labels = ("B-X", "I-X", "O")
    model = encoder(spec.Tag(labels), length=128)
    words = [TEXTS[2].split() * 6, ["Paris"]]
    own = evaluator(
        model, recipe.TagWords(kind="tag", on_long="window"), [{"words": w, "tags": ["O"] * len(w)} for w in words], 24
    )
    found = own.run(model)
    guess = [line.predicted for line in found.samples]
    assert found.values["span_f1"] == 0.0 or "[" not in "".join(guess)
    said = []
    for shown, own_words in zip(found.samples, words, strict=True):
        tags, rest = [], shown.predicted
        for word in own_words:
            marks = {f"[{word}: {label}]": label for label in labels[:2]} | {word: "O"}
            mark = next(mark for mark in marks if rest.startswith(mark))
            tags.append(marks[mark])
            rest = rest.removeprefix(mark).lstrip()
        said.append(tags)
    assert {tag for tags in said for tag in tags} - {"O"}, "else this shows nothing"
    records = [{"words": w, "tags": tags} for w, tags in zip(words, said, strict=True)]
    again = evaluator(model, recipe.TagWords(kind="tag", on_long="window"), records, 24).run(model)
    assert (again.values["span_f1"], again.values["accuracy"]) == (1.0, 1.0)
    cut = evaluator(model, recipe.TagWords(kind="tag", on_long="truncate"), records, 24).run(model)
    assert cut.values["accuracy"] < 1.0


def test_answers() -> None:
    model = encoder(spec.Span(), length=128)
    context = "Paris is the capital of France. Anna lives there."
    guess = model.predict("Who?", context, max_answer=30, window=20, stride=4).best
    records = [
        {"question": "Who?", "context": context, "answers": [{"text": guess.text, "start": guess.start}]},
        {"question": "Where?", "context": context, "answers": []},
    ]
    settings = recipe.AnswerSpan(kind="span", stride=4)
    found = evaluator(model, settings, records[:1], 20).run(model)
    assert found.values["exact"] == found.values["f1"] == 100.0
    assert "NoAns_f1" not in found.values
    both = evaluator(model, settings, records, 20).run(model)
    assert {"HasAns_exact", "NoAns_exact"} <= set(both.values)
    assert both.samples[1].expected == "no answer"


def test_pairs() -> None:
    model = encoder(spec.Pool())
    pairs = [{"first": text, "second": text} for text in TEXTS]
    found = evaluator(model, recipe.Contrast(kind="contrast"), pairs)
    assert found.run(model).values["accuracy"] == 1.0
    assert found.best == ("loss", "min")
    vectors = model.embed(TEXTS, normalize=True)
    cosines = [float(a @ b) for a, b in zip(vectors, vectors[::-1], strict=True)]
    scored = [{"first": a, "second": b, "score": c**3} for a, b, c in zip(TEXTS, TEXTS[::-1], cosines, strict=True)]
    likeness = evaluator(model, recipe.Contrast(kind="contrast"), scored)
    assert likeness.run(model).values["spearman"] == pytest.approx(1.0)
    assert likeness.best == ("spearman", "max")


def test_translations() -> None:
    model = text_to_text()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5)
    sources = ["w3 w4 w5", "w9", "w7 w8 w7 w8 w11"]
    said = [one.text for one in model.generate(sources, temperature=0, max_tokens=56)]
    assert all(said), "else this shows nothing"
    records = [{"source": source, "target": text} for source, text in zip(sources, said, strict=True)]
    settings = recipe.Translate(kind="seq2seq", smoothing=0.1)
    tests = evaluator(model, settings, records, metrics=("bleu", "chrf", "rouge1"))
    found = tests.run(model)
    assert [one.predicted for one in found.samples] == said
    assert found.values == pytest.approx({"bleu": 100.0, "chrf": 100.0, "rouge1": 1.0})
    assert found.said.keys() == {"bleu", "chrf"}
    assert "version:" in found.said["bleu"]
    assert tests.best == ("bleu", "max")
    plain = evaluator(model, settings, records, metrics=("loss", "perplexity"), samples=0).run(model)
    ids = [model.tokenizer.encode(text) for text in (sources[0], said[0])]  # type: ignore[union-attr]
    first = evaluator(model, settings, records[:1], metrics=("loss",)).run(model)
    out = model([ids[0]], target=[[0, *ids[1][:-1]]])[0]
    assert first.values["loss"] == pytest.approx(float(F.cross_entropy(out, torch.tensor(ids[1])).detach()), rel=1e-5)
    assert plain.values["perplexity"] == pytest.approx(math.exp(plain.values["loss"]))
    assert plain.samples == []


@pytest.mark.parametrize("packing", ["none", "blocks", "documents"])
def test_a_language_model(packing: Any) -> None:
    model = decoder()
    records = [{"text": "w3 w4 w5 w6 w7"}, {"text": "w8 w9"}]
    batch = recipe.BatchOf(sequences=2, length=4, packing=packing)
    tests = evaluator(model, recipe.Causal(kind="causal"), records, None if packing == "none" else 4, batch=batch)
    found = tests.run(model)
    assert found.values.keys() == {"loss", "perplexity"}
    if packing == "none":
        want = 0.0
        for ids in ([3, 4, 5, 6, 7, 1], [8, 9, 1]):
            want += float(F.cross_entropy(model([ids[:-1]])[0], torch.tensor(ids[1:]), reduction="sum").detach())
        assert found.values["loss"] == pytest.approx(want / 7, rel=1e-5)
    assert [one.expected for one in found.samples] == ["w5 w6 w7", "w9"]
    assert tests.run(model).values == found.values


def test_the_same_masks_each_time() -> None:
    model = encoder(spec.MaskedLM(spec.LayerNorm()))
    tests = evaluator(model, recipe.Masked(kind="masked", rate=0.5), [{"text": text} for text in TEXTS])
    state = torch.get_rng_state()
    first, second = tests.run(model), tests.run(model)
    assert first.values == second.values
    assert torch.equal(state, torch.get_rng_state())
    other = evaluator(model, recipe.Masked(kind="masked", rate=0.5), [{"text": text} for text in TEXTS], seed=1)
    assert other.run(model).values != first.values


def test_a_step_after_it_still_learns() -> None:
    model = encoder(spec.Classify(("bad", "good"))).train()
    tests = evaluator(model, recipe.ClassifyTexts(kind="classify"), labelled())
    tests.run(model)
    feed = next(iter(tests.feeds()))
    tests.objective.loss(model, feed).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", ["classify", "seq2seq", "causal"])
def test_between_two_steps(kind: str) -> None:
    """In autocast, twice, with other weights: what is said is the new weights', and gradients still flow."""
    words = {"source": "w3 w4", "target": "w5 w6", "text": "w3 w4 w5 w6"}
    model = {"seq2seq": text_to_text, "causal": decoder}.get(kind, lambda: encoder(spec.Classify(("bad", "good"))))()
    model.train()
    table = {"seq2seq": recipe.Translate, "causal": recipe.Causal, "classify": recipe.ClassifyTexts}[kind](kind=kind)
    tests = evaluator(model, table, labelled() if kind == "classify" else [words])
    precise = tests.run(model)
    rough = tests.run(model, lambda: torch.autocast("cpu", torch.bfloat16))
    assert rough.values["loss"] != precise.values["loss"]
    assert rough.values["loss"] == pytest.approx(precise.values["loss"], rel=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        tests.objective.loss(model, next(iter(tests.feeds()))).backward()
    optimizer.step()
    after = tests.run(model)
    assert after.values["loss"] != precise.values["loss"]
    if kind != "classify":
        assert after.samples != precise.samples


def test_records_that_can_not_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    model = encoder(spec.Classify(("bad", "good")))
    records = [*labelled(), {"text": "x", "label": "ugly"}]
    settings = recipe.ClassifyTexts(kind="classify", on_long="drop")
    with pytest.raises(InputError, match=r"data.jsonl:6: label 'ugly'"):
        evaluator(model, settings, records)
    tests = evaluator(model, settings, records, 9, bad=Bad(1))
    assert "skipped data.jsonl:6" in capsys.readouterr().err
    assert tests.objective.dropped == 5 - len(tests.records) > 0
    tests.run(model)
    assert len(evaluator(model, settings, records, limit=2).records) == 2
    with pytest.raises(InputError, match="no record to evaluate on"):
        evaluator(model, settings, labelled(), 3)


def test_metrics_that_are_not_there() -> None:
    model = encoder(spec.Classify(("bad", "good")))
    with pytest.raises(ConfigError, match=r"'classify' has no metric 'acuracy'; did you mean accuracy\?"):
        evaluator(model, recipe.ClassifyTexts(kind="classify"), labelled(), metrics=("acuracy",))
    with pytest.raises(ConfigError, match="no metric 'zzz': it has loss"):
        evaluator(model, recipe.ClassifyTexts(kind="classify"), labelled(), best="zzz")
    tests = evaluator(model, recipe.ClassifyTexts(kind="classify"), labelled(), metrics=("loss",), best="matthews")
    assert tests.best == ("matthews", "max")
    assert tests.run(model).values.keys() == {"loss", "matthews"}


def test_a_loss_that_is_not_finite() -> None:
    model = encoder(spec.Classify(("bad", "good")))
    tests = evaluator(model, recipe.ClassifyTexts(kind="classify"), labelled(), metrics=("loss",), samples=0)
    with torch.no_grad():
        model.head.out.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="the loss on the records to evaluate on is nan"):
        tests.run(model)
