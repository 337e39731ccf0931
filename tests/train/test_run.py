"""Runs, whole: what they leave, that they go on to the bit, and that nothing goes on silently."""

import json
import shutil

import pytest
import torch
import transformers

import qkv
from qkv.errors import ConfigError, CorruptFile, InputError, NotFound
from qkv.train import checkpoint, log
from qkv.train.checkpoint import CHECKPOINTS
from qkv.train.evaluate import Evaluation, Evaluator
from qkv.train.faults import NotFinite
from qkv.train.run import train
from qkv.train.schedule import factor
from tests.train.same import assert_same, held, losses
from tests.train.tiny import DRY, GPT2, SPEC, recipe, texts, write

CASES = {
    "plain": {},
    "mid-epoch": {"batch": {"sequences": 3}},
    "accumulated over the epoch's end": {"batch": {"sequences": 3, "accumulate": 3}},
    "by tokens": {"batch": {"tokens": 40}},
    "blocks": {"batch": {"packing": "blocks", "length": 16}},
    "documents": {"batch": {"packing": "documents", "length": 16, "accumulate": 2}},
    "two workers": {"data": {"workers": 2}, "batch": {"packing": "documents", "length": 16}},
    "dropout": {"model": {"dropout": 0.2}},
    "bfloat16": {"train": {"dtype": "bfloat16"}, "model": {"dropout": 0.2}},
    "float16": {"train": {"dtype": "float16"}},
    "forgotten activations": {"train": {"checkpoint_activations": True}, "model": {"dropout": 0.2}},
    "muon": {"train": {"optimizer": "muon"}},
    "adafactor": {"train": {"optimizer": "adafactor"}},
    "average": {"train": {"ema": 0.9}, "eval": {"every": 3}, "data": {"valid": "valid.jsonl"}},
    "frozen": {"model": {"freeze": ["decoder.embed.*"]}},
    "cosine": {"train": {"schedule": {"kind": "cosine", "warmup": 2, "floor": 0.1}}},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("qkv.train.prepare.cache_root", lambda: tmp_path / "cache")
    write(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_half_and_half_is_the_whole_to_the_bit(tmp_path, case):
    said = recipe(tmp_path, save={"every": 4, "keep": 9}, **CASES[case])
    whole, half = tmp_path / "whole", tmp_path / "half"
    train(said, whole)
    half.mkdir()
    for name in ("recipe.toml", "log.jsonl"):
        shutil.copy(whole / name, half / name)
    shutil.copytree(whole / "tokenizer", half / "tokenizer")
    shutil.copytree(whole / CHECKPOINTS / "step-00000004", half / CHECKPOINTS / "step-00000004")
    done = train(said, half)
    assert done.step == 8
    assert_same(held(whole, 8), held(half, 8))
    assert losses(whole) == losses(half)
    assert (half / "log.jsonl.lost-1").exists()


def test_what_a_run_leaves(tmp_path):
    out = tmp_path / "runs" / "tiny"
    said = recipe(tmp_path, data={"valid": "valid.jsonl"}, train={"steps": 60}, eval={"every": 20})
    done = train(said, out)
    assert (done.step, done.stopped) == (60, False)
    first, last = log.read(out).evaluations[0], log.read(out).evaluations[-1]
    assert last["values"]["perplexity"] < 0.8 * first["values"]["perplexity"]
    assert done.values["valid"] == last["values"]
    model = qkv.load(out)
    assert isinstance(model.generate("the cat", max_tokens=4).text, str)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    ids = model.tokenizer.encode("the cat sat")
    with torch.no_grad():
        assert torch.allclose(theirs(torch.tensor([ids])).logits[0], model([ids])[0], atol=1e-4)
    for name in ("index.html", "README.md", "curve.png", "recipe.toml"):
        assert (out / name).stat().st_size > 100, name
    assert train(said, out).step == 60  # and again: there is nothing left to do


def test_without_a_change_of_the_random_state_elsewhere(tmp_path):
    torch.manual_seed(5)
    a = train(recipe(tmp_path, model={"dropout": 0.1}), tmp_path / "a")
    torch.manual_seed(6)
    b = train(recipe(tmp_path, model={"dropout": 0.1}), tmp_path / "b")
    assert a.step == b.step
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    train(recipe(tmp_path, model={"dropout": 0.1}, seed=1), tmp_path / "c")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_a_changed_recipe_or_changed_data_is_not_gone_on_with(tmp_path):
    out = tmp_path / "run"
    train(recipe(tmp_path), out)
    with pytest.raises(InputError, match=r"train\.lr: 0\.01 → 0\.02.*--allow-changed"):
        train(recipe(tmp_path, train={"lr": 2e-2}), out)
    with pytest.raises(InputError, match="holds a run already"):
        train(recipe(tmp_path), out, resume="never")
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text() + '{"text": "the dog"}\n')
    with pytest.raises(InputError, match=r"train\.jsonl has other content"):
        train(recipe(tmp_path), out)
    assert train(recipe(tmp_path, train={"steps": 10}), out, allow_changed=True).step == 10


def test_what_never_began_may_be_changed(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="warmup"):
        train(recipe(tmp_path, train={"schedule": {"kind": "linear", "warmup": 100}}), out)
    assert train(recipe(tmp_path), out).step == 8


def test_a_step_that_is_not_there(tmp_path):
    out = tmp_path / "run"
    train(recipe(tmp_path, save={"every": 4}), out)
    with pytest.raises(NotFound, match=r"4.*8|8.*4"):
        train(recipe(tmp_path), out, resume=5)
    assert train(recipe(tmp_path), out, resume=4).step == 8
    for path in (out / CHECKPOINTS).glob("step-*/weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFile):
        train(recipe(tmp_path), out)


def test_a_broken_checkpoint_is_passed_over_aloud(tmp_path, capfd):
    out = tmp_path / "run"
    said = recipe(tmp_path, save={"every": 4})
    train(said, out)
    wanted = held(out, 8)
    path = out / CHECKPOINTS / "step-00000008" / "optimizer.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert train(said, out).step == 8
    assert "optimizer.safetensors" in capfd.readouterr().err
    assert_same(held(out, 8), wanted)


def test_a_number_that_is_not_finite_stops_before_the_step(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(
        "qkv.train.loop.factor", lambda schedule, at: float("nan") if at.step == 4 else factor(schedule, at)
    )
    with pytest.raises(
        NotFinite, match=r"step 6: the loss is nan; batch 1 of 1 \(.*jsonl:\d+.*decoder.* is not finite itself"
    ):
        train(recipe(tmp_path, save={"every": 2, "keep": 9}), out)
    assert sorted(p.name for p in (out / CHECKPOINTS).iterdir()) == ["step-00000002", "step-00000004"]
    assert "NotFinite" in log.read(out).ends[-1]["why"]


def test_the_best_weights_are_left_and_patience_ends(tmp_path):
    out = tmp_path / "run"
    backwards = [json.dumps({"text": " ".join(text.split()[::-1])}) for text in texts(6)]
    (tmp_path / "valid.jsonl").write_text("\n".join(backwards))  # which the model gets worse at
    said = recipe(
        tmp_path,
        data={"valid": "valid.jsonl"},
        train={"steps": 200, "lr": 5e-3},
        eval={"every": 5, "best": "perplexity", "patience": 2},
    )
    done = train(said, out)
    evaluations = log.read(out).evaluations
    best = min(evaluations, key=lambda line: line["values"]["perplexity"])
    assert done.step < 200
    assert done.best_step == best["step"] == evaluations[-3]["step"]
    assert done.values["valid"]["perplexity"] == pytest.approx(best["values"]["perplexity"], rel=1e-6)
    weights = checkpoint.at(out / CHECKPOINTS, done.best_step).read("weights")
    left = dict(qkv.load(out).named_parameters())
    assert all(torch.equal(tensor, left[name]) for name, tensor in weights.items())
    assert train(said, out).step == done.step


def test_what_evaluation_needs(tmp_path):
    with pytest.raises(ConfigError, match=r"eval\.every needs validation records"):
        train(recipe(tmp_path, eval={"every": 2}), tmp_path / "run")


def test_one_run_a_folder_and_no_models_of_others(tmp_path):
    from qkv.train.lock import Lock

    with Lock(tmp_path / "run"), pytest.raises(InputError, match="in use"):
        train(recipe(tmp_path), tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(InputError, match="of no run"):
        train(recipe(tmp_path), other)


def test_a_bad_record_is_named(tmp_path):
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": 5}\n')
    with pytest.raises(InputError, match=r"train\.jsonl:41.*skip_bad"):
        train(recipe(tmp_path), tmp_path / "run")
    train(recipe(tmp_path, data={"skip_bad": 1}), tmp_path / "run")
    assert any("1 records were bad" in line["text"] for line in log.read(tmp_path / "run").notes)


def test_a_spec_without_a_family_is_trained_and_told(tmp_path):
    done = train(recipe(tmp_path, model={"spec": SPEC}), tmp_path / "run")
    assert done.step == 8
    notes = [line["text"] for line in log.read(tmp_path / "run").notes]
    assert any("no model is left beside the checkpoints" in note for note in notes)


def test_json_of_what_was_done(tmp_path):
    done = train(recipe(tmp_path, model={"config": {**GPT2, **DRY}}), tmp_path / "run")
    assert json.loads(json.dumps(done.to_dict()))["step"] == 8


def test_the_test_records_are_looked_at_before_training_and_the_model_is_left_first(tmp_path, monkeypatch):
    out = tmp_path / "run"
    with pytest.raises(NotFound, match=r"nothere\.jsonl"):
        train(recipe(tmp_path, data={"test": "nothere.jsonl"}), out)
    assert not (out / CHECKPOINTS).exists()
    said = recipe(tmp_path, train={"steps": 2}, data={"test": "valid.jsonl"})
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "run", lambda *_: (_ for _ in ()).throw(InputError("no room")))
        with pytest.raises(InputError, match="no room"):
            train(said, out)
    assert qkv.load(out).spec.family == "gpt2"
    assert train(said, out).values["test"]["loss"] > 0


def test_a_best_step_whose_weights_are_not_there_is_forgotten(tmp_path, monkeypatch):
    out = tmp_path / "run"
    values = iter(range(1, 99))  # always worse
    monkeypatch.setattr(Evaluator, "run", lambda *_: Evaluation({"loss": float(next(values))}, [], 0.0))
    least = {"data": {"valid": "valid.jsonl"}, "save": {"every": 2, "keep": 1}}
    train(recipe(tmp_path, train={"steps": 2}, eval={"every": 1}, **least), out)
    done = train(recipe(tmp_path, train={"steps": 3}, eval={"every": 1, "best": "loss"}, **least), out,
                 allow_changed=True)  # fmt: skip
    assert done.best_step == 2, "judged again, since step 1 is gone"
    notes = [line["text"] for line in log.read(out).notes]
    assert any("step 1, so far the best by loss, is forgotten: " in note and "step 1" in note for note in notes)


def test_another_metric_begins_anew(tmp_path):
    out = tmp_path / "run"
    least = {"data": {"valid": "valid.jsonl"}}
    train(recipe(tmp_path, train={"steps": 2}, eval={"every": 1, "best": "loss"}, **least), out)
    path = out / CHECKPOINTS / "step-00000002"
    assert json.loads((path / "state.json").read_text())["loop"]["metric"] == "loss"
    other = recipe(tmp_path, train={"steps": 3}, eval={"every": 1, "best": "perplexity"}, **least)
    assert train(other, out, allow_changed=True).best_step in (2, 3)
    notes = [line["text"] for line in log.read(out).notes]
    assert any("so far the best by loss, is forgotten: perplexity decides now" in note for note in notes)


def test_a_run_that_ended_early_goes_on_with_more_patience(tmp_path, monkeypatch):
    values = iter(range(1, 99))
    monkeypatch.setattr(Evaluator, "run", lambda *_: Evaluation({"loss": float(next(values))}, [], 0.0))
    monkeypatch.setattr("qkv.train.run.gemm_peak", lambda *_: 1e9)
    monkeypatch.setattr("qkv.train.export.curve.png", lambda *_: None)

    def go(patience):
        said = recipe(tmp_path, data={"valid": "valid.jsonl"}, eval={"every": 1, "patience": patience})
        return train(said, tmp_path / "run", allow_changed=True).step

    assert [go(1), go(3), go(2), go(99)] == [2, 4, 4, 8]


def test_a_schedule_without_room_is_told_before_any_work(tmp_path):
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"inverse_sqrt .* say warmup"):
        train(recipe(tmp_path, train={"schedule": {"kind": "inverse_sqrt"}}), tmp_path / "run")
