"""Recipes as files: what stands on what, what an override takes away, and TOML that reads as the same recipe."""

import string
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv.errors import ConfigError, NotFound
from qkv.train import recipe as schema
from qkv.train.recipe import Recipe
from qkv.train.recipe_file import OVERRIDE, differences, digest, load, merge, resolved

BASE = """
[model]
from = "minilm"
new_head = "classify"
[data]
root = "files"
train = ["a.jsonl", "b.jsonl"]
fields = { text = "sentence" }
[objective]
kind = "classify"
labels = ["no", "yes"]
smoothing = 0.1
[batch]
tokens = 4096
[train]
epochs = 3
lr = 5e-5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.toml").write_text(BASE)
    (tmp_path / "run.toml").write_text('base = "base/base.toml"\nseed = 7\n[data]\ntrain = "c.jsonl"\n')
    return tmp_path


def test_a_file_stands_on_another(folder: Path) -> None:
    run = load(folder / "run.toml")
    assert (run.seed, run.train.epochs, run.data.train) == (7, 3.0, "c.jsonl")
    assert run.data.fields == {"text": "sentence"}
    assert run.name == "run", "the base's name is not inherited"
    assert load(folder / "base" / "base.toml").data.train == ("a.jsonl", "b.jsonl")


def test_names_of_files_are_relative_to_who_says_the_root(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder / "base")
    assert load(folder / "run.toml").data.root == str(folder / "base" / "files")
    assert load("../run.toml", ["data.root=x"]).data.root == str(folder / "base" / "x")
    (folder / "no.toml").write_text(BASE.replace('root = "files"\n', ""))
    assert load("../no.toml").data.root == str(folder)


def test_a_chain_and_a_loop(folder: Path) -> None:
    (folder / "third.toml").write_text('base = "run.toml"\nname = "third"\n[train]\nlr = 1e-3\n')
    third = load(folder / "third.toml")
    assert (third.name, third.seed, third.train.lr, third.train.epochs) == ("third", 7, 1e-3, 3.0)
    (folder / "base" / "base.toml").write_text('base = "../third.toml"\n')
    with pytest.raises(ConfigError, match=r"stands on itself: .*third.toml → .*run.toml → .*base.toml → "):
        load(folder / "third.toml")


def test_overrides(folder: Path) -> None:
    said = [
        "train.lr=3e-4",
        "train.schedule.kind=cosine",
        'data.train=["x", "y"]',
        "name=2020-01-01",
        "train.clip=none",
    ]
    run = load(folder / "run.toml", said)
    assert (run.train.lr, run.train.schedule.kind, run.data.train) == (3e-4, "cosine", ("x", "y"))
    assert (run.name, run.train.clip) == ("2020-01-01", None)


def test_what_excludes_goes_with_its_own(folder: Path) -> None:
    base = folder / "run.toml"
    assert load(base, ["train.steps=10"]).train.epochs is None
    assert load(base, ["train.minutes=1.5"]).train.epochs is None
    assert load(base, ["batch.sequences=8"]).batch.tokens is None
    fresh = load(base, ['model.config={model_type="bert"}', "tokenizer.train=bpe", "tokenizer.vocab=300"])
    assert (fresh.model.origin, fresh.model.new_head) == (None, "classify")
    (folder / "fresh.toml").write_text(
        'base = "run.toml"\n[model.config]\nmodel_type = "bert"\n[tokenizer]\ntrain = "bpe"\nvocab = 300\n'
    )
    back = load(folder / "fresh.toml", ["model.from=minilm", "tokenizer.from=minilm"])
    assert (back.model.config, back.tokenizer) == (None, schema.TokenizerFrom.model_validate({"from": "minilm"}))
    other = load(base, ["objective.kind=causal"]).objective
    assert other == schema.Causal(kind="causal", smoothing=0.1), "the labels are another objective's"
    assert load(base, ["objective.kind=classify"]).objective == load(base).objective


def test_both_of_a_group_in_one_place_are_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"{OVERRIDE}: train: say one of steps, epochs and minutes"):
        load(folder / "run.toml", ["train.steps=1", "train.epochs=1"])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("train.lr", "'train.lr' is no change of a recipe: write it as train.lr=3e-4"),
        ("=3", "no change of a recipe"),
        ("train.=3", "no change of a recipe"),
        ("train.lr=", "no change of a recipe"),
        ("train.betas=[0.9", "the value is not TOML"),
        ("train.lr=1\nx = 2", "says more than one value"),
        ("train.lrr=1", "there is no train.lrr; did you mean 'train.lr'"),
        ("lr=1", "there is no lr; did you mean 'train.lr'"),
        ("train.lr=fast", "train.lr must be a number, got 'fast'"),
    ],
)
def test_an_override_that_is_wrong(folder: Path, said: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(folder / "run.toml", [said])
    assert error in str(raised.value)
    assert OVERRIDE in str(raised.value)


def test_the_same_key_twice(folder: Path) -> None:
    for other in ("train.schedule.kind=wsd", "train.schedule={}"):
        with pytest.raises(ConfigError, match="say the same key"):
            load(folder / "run.toml", ["train.schedule.kind=linear", other])


def test_files_that_are_wrong(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"runn\.toml: No such file.*did you mean '.*run\.toml'"):
        load(folder / "runn.toml")
    (folder / "lost.toml").write_text('base = "bas.toml"\n')
    with pytest.raises(NotFound, match=r"lost\.toml: its base .*bas\.toml"):
        load(folder / "lost.toml")
    for text, error in (
        ("a = \n", "is not TOML"),
        ("base = 3\n", "base must be the name"),
        ("x=" + "[" * 9999, "deep"),
    ):
        (folder / "bad.toml").write_text(text)
        with pytest.raises(ConfigError, match=f"bad.toml.*{error}"):
            load(folder / "bad.toml")
    (folder / "bad.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(folder / "bad.toml")


@given(st.recursive(st.integers(0, 3), lambda inner: st.dictionaries(st.sampled_from("abc"), inner)))
def test_merging_with_nothing_changes_nothing(value: Any) -> None:
    table = value if isinstance(value, dict) else {"a": value}
    assert merge({}, table) == merge(table, {}) == merge(table, table) == table


# --- there and back -------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda one: one != "none")
word = st.text(string.ascii_lowercase + "_-. é", min_size=1, max_size=6).filter(lambda one: one != "none")
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(1e-12, 1e12)
below1 = st.floats(0, 1, exclude_max=True)
free = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(word, inner, max_size=3),
    max_leaves=6,
)


def maybe(**values: Any) -> Any:
    """Any of these keys, or none."""
    return st.fixed_dictionaries({}, optional=values)


def both(*tables: Any) -> Any:
    """All keys of several tables."""
    return st.tuples(*tables).map(lambda found: {key: value for one in found for key, value in one.items()})


def one_of(**values: Any) -> Any:
    """Just one of these keys."""
    return st.one_of(*(st.fixed_dictionaries({key: value}) for key, value in values.items()))


table = st.dictionaries(word, free, max_size=3)
file = text | both(st.fixed_dictionaries({"path": text}), maybe(set=table))
objective = st.one_of(
    both(st.just({"kind": "causal"}), maybe(smoothing=below1, on_long=st.sampled_from(["drop", "window"]))),
    both(st.just({"kind": "masked"}), maybe(rate=st.floats(0.01, 0.9), dynamic=st.booleans())),
    both(st.just({"kind": "classify"}), maybe(labels=st.none() | st.lists(text, max_size=3))),
    both(st.just({"kind": "span"}), maybe(stride=st.integers(1, 99))),
)
recipes = both(
    st.fixed_dictionaries(
        {
            "name": text,
            "model": both(
                one_of(**{"from": word, "config": table, "spec": table}), maybe(dropout=below1, new_head=word)
            ),
            "data": both(
                st.fixed_dictionaries({"train": file | st.lists(file, max_size=3), "root": st.just("/data")}),
                maybe(fields=st.dictionaries(word, text | st.integers(1, 9)), hold_out=st.none() | maybe(valid=below1)),
            ),
            "objective": objective,
            "batch": both(one_of(sequences=st.integers(1), tokens=st.integers(1)), maybe(length=st.integers(1, 999))),
            "train": both(
                one_of(steps=st.integers(1), epochs=positive, minutes=positive),
                maybe(lr=positive, clip=st.none() | positive, betas=st.tuples(below1, below1), ema=st.none()),
            ),
        }
    ),
    maybe(seed=st.integers(0, 2**63), eval=maybe(every=st.none() | st.integers(1), metrics=st.none() | st.lists(text))),
).map(Recipe.model_validate)


@settings(max_examples=150, deadline=None)
@given(recipes)
def test_resolved_is_the_same_recipe(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.toml"
    path.write_text(resolved(recipe), encoding="utf-8")
    again = load(path)
    assert again == recipe
    assert (digest(again), differences(recipe, again)) == (digest(recipe), [])


def test_resolved_says_defaults_too(folder: Path) -> None:
    said = tomllib.loads(resolved(load(folder / "run.toml", ["train.clip=none"])))
    assert said["train"]["eps"] == 1e-8
    assert said["train"]["clip"] == "none"
    assert said["eval"] == {"samples": 3}


def test_what_toml_cannot_say(folder: Path) -> None:
    run = load(folder / "run.toml")
    for change, error in (
        ({"model": schema.ModelFrom(config={"a": [{"b": None}]})}, "model.config.a.b holds None"),
        ({"eval": schema.Evaluate(best="none")}, "eval.best is the text 'none'"),
    ):
        with pytest.raises(ConfigError, match=error):
            resolved(run.model_copy(update=change))


def test_the_digest_is_of_what_shapes_the_weights(folder: Path) -> None:
    path = folder / "run.toml"
    run = load(path)
    aside = ["name=x", "data.root=y", "data.workers=2", "save.every=5", "watch.tensorboard=true", "eval.samples=0"]
    assert digest(load(path, aside)) == digest(run)
    assert differences(run, load(path, aside)) == []
    changed = load(path, ["train.lr=0.003", "train.steps=5", 'objective.labels=["a"]'])
    assert digest(changed) != digest(run)
    assert differences(run, changed) == [
        "objective.labels: ['no', 'yes'] → ['a']",
        "train.epochs: 3 → none",
        "train.lr: 5e-05 → 0.003",
        "train.steps: none → 5",
    ]
    assert len(digest(run)) == 64


def test_no_torch() -> None:
    code = "import sys, qkv.train.recipe_file; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
