"""What a run leaves in its folder."""

import pytest

import qkv
from qkv import spec
from qkv.model import Model
from qkv.train import card, export, log
from qkv.train.begin import begin
from qkv.train.recipe import ModelFrom
from tests.train.tiny import GPT2, recipe


@pytest.fixture
def model():
    return begin(ModelFrom.model_validate({"config": {**GPT2, "vocab_size": 30}}), None, None)


def test_a_model_takes_the_place_of_the_one_before(tmp_path, model, monkeypatch):
    told: list[str] = []
    assert export.leave(model, tmp_path, told.append)
    assert export.holds_model(tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    order: list[str] = []
    own = export.os.replace
    monkeypatch.setattr(export.os, "replace", lambda a, b: (order.append(b.name), own(a, b)))
    (tmp_path / ".leaving").mkdir()
    (tmp_path / ".leaving" / "half").touch()  # of a run that was killed
    assert export.leave(model, tmp_path, told.append)
    assert order[-1] == "config.json"
    assert {path.name for path in tmp_path.iterdir()} == set(before)
    assert all(path.stat().st_ino != before[path.name] for path in tmp_path.iterdir())
    assert qkv.load(tmp_path).spec == model.spec
    assert not told


def test_a_spec_of_no_family_is_told(tmp_path):
    mixer = spec.Attention(2, 2, mask=spec.Causal())
    stack = spec.Stack((spec.Block(mixer, spec.Plain(16, "relu2"), spec.RMS()),), layers=1)
    told: list[str] = []
    own = Model(spec.Model(vocab=9, dim=8, decoder=stack, head=spec.LMHead(tied=True)))
    assert not export.leave(own, tmp_path, told.append)
    assert "no model is left beside the checkpoints" in told[0]
    assert not export.holds_model(tmp_path)


def test_a_paper_that_fails_ends_nothing(tmp_path, model, monkeypatch):
    told: list[str] = []
    log.Log(tmp_path).record({"kind": "step", "step": 1, "loss": 2.0, "tokens": 3, "seconds": 1.0})
    about = card.About(model.spec, 1, 1, {}, {"train": 1}, None, None, True)

    def full(*_):
        raise OSError("no room")

    monkeypatch.setattr(export.page, "write", full)
    monkeypatch.setattr(export.curve, "png", lambda _, path, title: path.write_bytes(b"drawn"))
    export.papers(tmp_path, recipe(tmp_path), about, told.append)
    assert "(curve.png)" in (tmp_path / "README.md").read_text()
    told.clear()
    monkeypatch.setattr(export.curve, "png", lambda *_: "there is no matplotlib")
    export.papers(tmp_path, recipe(tmp_path), about, told.append)
    assert told == ["there is no matplotlib", "a paper of the run can't be written: no room"]
    assert (tmp_path / "README.md").exists()
