"""Scores of files: the head decides what is counted; each kind of file, and a run's own records."""

import json
from pathlib import Path
from typing import Any

import pytest

import qkv
from qkv import spec
from qkv.adapt.quantize import quantize
from qkv.errors import ConfigError, InputError
from qkv.train import recipe
from qkv.train.likelihood import likelihood
from qkv.train.score import score_file, score_run
from tests.tiny import text_to_text, tiny_spec
from tests.train.heads import encoder

TEXTS = ["Paris is the capital", "Berlin", "Anna Smith lives in New York with Bob"]


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_labels_of_a_csv_file_by_other_names(tmp_path: Path) -> None:
    model = encoder(spec.Classify(("bad", "good")))
    guess = [one.label for one in model.predict(TEXTS)]
    file = tmp_path / "data.csv"
    rows = [f'"{text}",{label}' for text, label in zip(TEXTS, guess, strict=True)]
    file.write_text("\n".join(["sentence,y", *rows]) + "\n", encoding="utf-8")
    got = score_file(model, file, fields={"text": "sentence", "label": "y"}, samples=1)
    assert got.objective == "classify"
    assert got.evaluation.values["accuracy"] == 1.0
    assert [one.input for one in got.evaluation.samples] == TEXTS[:1]
    some = score_file(model, file, fields={"text": 1, "label": 2}, metrics=("accuracy",), limit=2)
    assert some.evaluation.values == {"accuracy": 1.0}


def test_tags_of_a_conll_file(tmp_path: Path) -> None:
    model = encoder(spec.Tag(("B-LOC", "B-PER", "O")))
    file = tmp_path / "data.conll"
    file.write_text("Anna B-PER\nlives O\n\nBerlin B-LOC\n", encoding="utf-8")
    got = score_file(model, file)
    assert set(got.evaluation.values) == {"loss", "span_f1", "span_precision", "span_recall", "accuracy"}


def test_answers_of_squads_own_file(tmp_path: Path) -> None:
    model = encoder(spec.Span(), length=128)
    questions = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Anna Smith", "answer_start": 0}], "is_impossible": False},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    data = {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": TEXTS[2], "qas": questions}]}]}
    file = tmp_path / "dev.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    got = score_file(model, file, metrics=("exact", "f1", "HasAns_f1", "NoAns_f1"), stride=16)
    assert got.evaluation.values["f1"] == pytest.approx(
        (got.evaluation.values["HasAns_f1"] + got.evaluation.values["NoAns_f1"]) / 2
    )


def test_pairs_with_a_score(tmp_path: Path) -> None:
    model = encoder(spec.Pool())
    file = jsonl(tmp_path / "sts.jsonl", [{"first": t, "second": TEXTS[0], "score": i} for i, t in enumerate(TEXTS)])
    got = score_file(model, file)
    vectors = model.embed(TEXTS, normalize=True)
    order = sorted(range(3), key=lambda i: float(vectors[i] @ vectors[0]))
    ranks = [order.index(i) for i in range(3)]
    want = 1 - 6 * sum((rank - i) ** 2 for i, rank in enumerate(ranks)) / (3 * 8)
    assert got.evaluation.values["spearman"] == pytest.approx(want)


def test_translations(tmp_path: Path) -> None:
    model = text_to_text()
    file = jsonl(tmp_path / "data.jsonl", [{"fr": "w3 w4", "en": "w5"}, {"fr": "w9", "en": "w7 w8"}])
    fields = {"source": "fr", "target": "en"}
    got = score_file(model, file, fields=fields)
    assert set(got.evaluation.values) == {"loss", "perplexity", "bleu", "chrf"}
    assert "version:" in got.said["bleu"]
    other = score_file(model, file, fields=fields, metrics=("loss",), prefix="w9 w9 ")
    assert other.evaluation.values["loss"] != got.evaluation.values["loss"]


def test_a_text_file_is_one_text_of_a_decoder(tmp_path: Path) -> None:
    made = qkv.Model(spec.Model(97, 16, tiny_spec().decoder))
    made.tokenizer = text_to_text().tokenizer
    text = "w5 w6 w7\nw8 w9\n" * 3
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    got = score_file(made, tmp_path / "text.txt", length=8, stride=2)
    want = likelihood(made, made.tokenizer, [text], length=8, stride=2)
    assert got.evaluation.values == want.values
    assert got.said == {"counted": want.describe()}
    records = score_file(made, jsonl(tmp_path / "a.jsonl", [{"text": "w5 w6"}, {"text": "w7 w8 w9"}]))
    assert records.evaluation.values == likelihood(made, made.tokenizer, ["w5 w6", "w7 w8 w9"]).values
    trained = score_file(made, tmp_path / "a.jsonl", "causal", samples=1)  # as in training: with the end, too
    assert trained.evaluation.values.keys() == {"loss", "perplexity"}
    answers = jsonl(tmp_path / "b.jsonl", [{"text": "w5 w6", "say": "w7"}])
    assert score_file(made, answers, fields={"answer": "say"}).evaluation.values.keys() == {"loss", "perplexity"}
    with pytest.raises(InputError, match="prefix is not for perplexity"):
        score_file(made, tmp_path / "text.txt", prefix="x")
    with pytest.raises(ConfigError, match="no metric 'bleu': there are loss, perplexity, bits_per_byte"):
        score_file(made, tmp_path / "text.txt", metrics=("bleu",))


def run(folder: Path, **changes: Any) -> recipe.Recipe:
    jsonl(folder / "train.jsonl", [{"text": f"{text} {i}", "label": "good"} for i in range(9) for text in TEXTS])
    table = {
        "name": "x",
        "model": {"from": "x"},
        "data": {"train": "train.jsonl", "root": str(folder), "hold_out": {"valid": 0.3, "test": 0.2}},
        "objective": {"kind": "classify", "on_long": "drop"},
        "batch": {"sequences": 4, "length": 24},
        "train": {"steps": 1},
        **changes,
    }
    return recipe.Recipe.model_validate(table)


def test_a_runs_own_records(tmp_path: Path) -> None:
    model = encoder(spec.Classify(("bad", "good")))
    said = run(tmp_path, eval={"metrics": ["accuracy"], "best": "accuracy", "limit": 1})
    valid, test = score_run(model, said), score_run(model, said, "test", metrics=("loss", "accuracy"))
    assert valid.evaluation.values.keys() == {"accuracy"}
    assert test.evaluation.values.keys() == {"loss", "accuracy"}
    records = [f"{text} {i}" for i in range(9) for text in TEXTS]
    seen: list[set[str]] = []
    for split in ("train", "valid", "test"):
        found = score_run(model, said, split, samples=27)  # type: ignore[arg-type]
        seen.append({one.input for one in found.evaluation.samples})
    assert sum(map(len, seen)) == len(records)
    assert set.union(*seen) == set(records)
    limited = score_run(model, said, limit=1, samples=27)
    assert len(limited.evaluation.samples) == 1 < len(seen[1])
    cut = said.model_copy(update={"batch": recipe.BatchOf(sequences=4, length=8)})
    assert "left out" in score_run(model, cut).said["long texts"]


def test_what_it_can_not_score(tmp_path: Path) -> None:
    model = encoder(spec.Classify(("bad", "good")))
    file = jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "good"}])
    with pytest.raises(InputError, match=r"stride: the objective 'classify' has no such setting"):
        score_file(model, file, stride=3)
    with pytest.raises(InputError, match=r"no objective is called 'clasify'; there are .*'classify'"):
        score_file(model, file, "clasify")
    with pytest.raises(InputError, match="format 'xml'"):
        score_file(model, file, format="xml")
    with pytest.raises(InputError, match="a States head doesn't tell"):
        score_file(encoder(spec.States()), file)
    with pytest.raises(InputError, match=r"a.jsonl:1: label 'good' is none"):
        score_file(encoder(spec.Classify(("x",))), file)
    packed = qkv.Model(spec.Model(128, 32, tiny_spec().decoder))
    packed.tokenizer = text_to_text().tokenizer
    quantize(packed, "int8")
    assert score_file(packed, jsonl(tmp_path / "b.jsonl", [{"text": "w5 w6"}])).objective == "causal"
    with pytest.raises(InputError, match="load the model with a dtype"):
        score_file(packed, tmp_path / "b.jsonl", "causal")
    model.tokenizer = None
    with pytest.raises(InputError, match="no tokenizer"):
        score_file(model, file)
