"""What is wrong in a recipe is named by its file and key, with what was given and what was meant."""

from pathlib import Path

import pytest

from qkv.errors import ConfigError
from qkv.train.recipe_errors import dotted
from qkv.train.recipe_file import load

TEXT = """
[model]
from = "minilm"
[data]
train = "a.jsonl"
[objective]
kind = "causal"
[batch]
sequences = 8
[train]
epochs = 3
"""
KINDS = "causal, masked, spans, prefix, denoise, seq2seq, classify, tag, span, contrast"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("train.epoch=3", "there is no train.epoch; did you mean 'train.epochs'?"),
        ("batch.size=3", "there is no batch.size"),
        ("train.length=3", "there is no train.length; did you mean 'batch.length'?"),
        ("trian.lr=3", "there is no trian; did you mean 'train'?"),
        ("train.schedule.warmpu=3", "there is no train.schedule.warmpu; did you mean 'train.schedule.warmup'?"),
        ("objective.rate=0.1", "there is no objective.rate where kind is 'causal'"),
        ("objective.kind=clasify", f"objective.kind is 'clasify', none of {KINDS}; did you mean 'classify'?"),
        ("objective=3", "objective must be a table, got 3"),
        ("train.dtype=bf16", "train.dtype is 'bf16', none of float32, bfloat16, float16; did you mean 'bfloat16'?"),
        ("train.steps=1.5", "train.steps must be a whole number, got 1.5"),
        ('train.steps="5"', "train.steps must be a whole number, got '5'"),
        ("train.steps=true", "train.steps must be a whole number, got True"),
        ("train.steps=0", "train.steps must be greater than or equal to 1, got 0"),
        ("train.lr=inf", "train.lr must be a finite number, got inf"),
        ("train.compile=True", "train.compile must be true or false, got 'True'"),
        ("train.betas=[1,2,3]", "train.betas must have at most 2 items, got [1, 2, 3]"),
        ("train.betas=[1.5,0.5]", "train.betas[0] must be less than 1, got 1.5"),
        ("name=5", "name must be a text, got 5"),
        ("batch=4", "batch must be a table, got 4"),
        ("data.fields=4", "data.fields must be a table, got 4"),
        ("data.train=5", "data.train must be a text or a table or a list, got 5"),
        ("data.train=[5]", "data.train[0] must be a text or a table, got 5"),
        ('data.train=[{pth="x"}]', "data.train[0].path is missing"),
        ("data.hold_out.valid=1", "data.hold_out.valid must be less than 1, got 1"),
        ("data.hold_out={valid=0.5,test=0.5}", "data.hold_out: valid and test together leave nothing to train on"),
        ("batch.packing=blocks", "batch: packing needs a length"),
        ("model.from=none", "model: say one of from"),
    ],
)
def test_messages(tmp_path: Path, said: str, error: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    with pytest.raises(ConfigError) as raised:
        load(path, [said])
    assert error in str(raised.value)
    assert str(raised.value).startswith(("the command line: ", f"{path}: data.train[0].path"))


def test_the_file_that_said_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(TEXT.replace("epochs = 3", "epochs = -3\nlr = 'x'"))
    (tmp_path / "run.toml").write_text('base = "base.toml"\n[train.schedule]\nkind = "linaer"\n')
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "run.toml")
    assert str(raised.value).splitlines() == [
        f"{tmp_path}/base.toml: train.epochs must be greater than 0, got -3",
        f"{tmp_path}/base.toml: train.lr must be a number, got 'x'",
        f"{tmp_path}/run.toml: train.schedule.kind is 'linaer', none of constant, linear, cosine, inverse_sqrt, wsd;"
        " did you mean 'linear'?",
    ]


def test_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT.replace('kind = "causal"', "").replace('train = "a.jsonl"', ""))
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert f"{path}: data.train is missing" in str(raised.value)
    assert f"objective.kind is missing: say one of {KINDS}" in str(raised.value)
    path.write_text("")
    with pytest.raises(ConfigError, match=r"run.toml: model is missing\n"):
        load(path)


def test_many_problems_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT + "".join(f"key{i} = 1\n" for i in range(11)))
    with pytest.raises(ConfigError, match=r"and 3 more$"):
        load(path)


def test_dotted() -> None:
    assert dotted(("data", "train", 1, "path")) == "data.train[1].path"
