"""`qkv eval`: metrics on standard output, everything else beside it; what it counts is `qkv.train.score`'s."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import qkv
from qkv.cli.evaluate import _pairs
from qkv.errors import InputError
from qkv.train.score import score_file
from tests.cli.conftest import Command
from tests.tasks.fakes import theirs, wordpiece

TEXTS = ["Paris is the capital", "Berlin", "Anna Smith lives in New York with Bob"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classify"
    torch.manual_seed(1)
    model, _ = theirs(folder, wordpiece(), "SequenceClassification", ("bad", "good"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    rows = [{"sentence": text, "y": "bad" if i else "good"} for i, text in enumerate(TEXTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


FIELDS = "text=sentence,label=y"


def test_what_is_printed(command: Command, classifier: Path, data: Path) -> None:
    want = score_file(qkv.load(classifier), data, fields={"text": "sentence", "label": "y"}, samples=2)
    values = want.evaluation.values
    ran = command("eval", classifier, "--data", data, "--fields", FIELDS, "--samples", 2)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.split() for line in lines[: len(values)]] == [[name, f"{value:.4f}"] for name, value in values.items()]
    shown = want.evaluation.samples[1]
    assert lines[-3:] == [shown.input, f"  expected   {shown.expected}", f"  predicted  {shown.predicted}"]
    found = command("eval", classifier, "--data", data, "--fields", FIELDS, "--json", "--metrics", "accuracy,loss").json
    assert found["metrics"] == pytest.approx({name: values[name] for name in ("accuracy", "loss")})
    assert found["objective"] == "classify"
    assert str(classifier) in found["model"]


def test_a_decoder_and_how_it_was_counted(command: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox\njumps.\n" * 5, encoding="utf-8")
    ran = command("eval", folder, "--data", tmp_path / "text.txt", "--length", 32, "--stride", 8)
    assert [line.split()[0] for line in ran.out.splitlines()] == ["loss", "perplexity", "bits_per_byte"]
    assert "windows of at most 32 tokens that share 8; a token counts once" in ran.err
    found = command("eval", folder, "--data", tmp_path / "text.txt", "--json").json
    assert "a token counts once" in found["said"]["counted"]


def test_a_model_without_a_head_makes_vectors(command: Command, tmp_path: Path) -> None:
    reference: Any = theirs(tmp_path / "bare", wordpiece(), "MaskedLM")[0]
    reference.bert.save_pretrained(tmp_path / "bare")
    rows = [{"first": text, "second": TEXTS[0], "score": i} for i, text in enumerate(TEXTS)]
    (tmp_path / "sts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = command("eval", tmp_path / "bare", "--data", tmp_path / "sts.jsonl", "--json").json
    assert found["metrics"].keys() == {"spearman", "pearson"}


def test_a_run_and_its_own_records(command: Command, classifier: Path, data: Path, tmp_path: Path) -> None:
    model = qkv.load(classifier)
    folder = qkv.save(model, tmp_path / "run")
    (folder / "recipe.toml").write_text(
        f"""
        name = "run"
        [model]
        from = "x"
        [data]
        train = "data.jsonl"
        valid = "data.jsonl"
        root = {json.dumps(str(data.parent))}
        fields = {{text = "sentence", label = "y"}}
        [objective]
        kind = "classify"
        [batch]
        sequences = 2
        [train]
        steps = 1
        """
    )
    want = score_file(model, data, fields={"text": "sentence", "label": "y"}).evaluation.values
    found = command("eval", folder, "--json").json
    assert found["metrics"] == pytest.approx(want)
    assert command("eval", folder, "--split", "valid", "--json").json["metrics"] == pytest.approx(want)
    assert "there are no test records" in command("eval", folder, "--split", "test").err
    assert "--split dev is none of train, valid, test" in command("eval", folder, "--split", "dev").err
    assert "--on-long is for --data" in command("eval", folder, "--on-long", "drop").err
    assert "--objective is for --data" in command("eval", folder, "--objective", "tag").err


def test_wrong_usage(command: Command, classifier: Path, data: Path) -> None:
    ran = command("eval", classifier)
    assert ran.code == 1
    assert "is no run (it has no recipe.toml), so it needs --data FILE" in ran.err
    assert "--split is one of a run's own" in command("eval", classifier, "--data", data, "--split", "test").err
    missing = command("eval", classifier, "--data", data)
    assert "field 'text' is missing; there are sentence, y" in missing.err
    ran = command("eval", classifier, "--data", data, "--fields", FIELDS, "--metrics", "f2", "--json")
    assert ran.json["error"]["type"] == "ConfigError"
    for wrong in ("text", "text=", "=x", "text=a,"):
        with pytest.raises(InputError, match="NAME=COLUMN"):
            _pairs(wrong)
    assert _pairs("text=1, label = y") == {"text": 1, "label": "y"}
