"""The model card: metadata that the hub's own reader takes, and a text that says what was done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from qkv import spec
from qkv.train import card, curve
from qkv.train.card import About
from qkv.train.log import History
from qkv.train.recipe import Recipe
from tests.tiny import text_to_text, tiny_spec
from tests.train.test_page import about, run
from tests.train.test_watch import recipe


def written(folder: Path, made: Recipe, what: About, history: History) -> ModelCard:
    path = card.write(folder, made, what, history)
    assert path == folder / "README.md"
    return ModelCard.load(path)


def changed(**more: Any) -> Recipe:
    return Recipe.model_validate({**recipe().model_dump(by_alias=True), **more})


def test_what_the_hub_reads(tmp_path: Path) -> None:
    made, history = run(tmp_path)
    found = written(tmp_path, made, about(commit="abc123"), history)
    assert found.data.library_name == "qkv"
    assert found.data.license is None  # the user's to say
    assert found.data.base_model == "somewhere"
    assert found.data.pipeline_tag == "text-generation"
    assert found.data.metrics == ["bleu", "loss"]
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in found.data.eval_results}
    assert results == {("valid", "loss"): 1.25, ("valid", "bleu"): 31.5, ("test", "bleu"): 30.0}


def test_what_a_person_reads(tmp_path: Path) -> None:
    made, history = run(tmp_path)
    (tmp_path / curve.PNG).write_bytes(b"")
    text = written(tmp_path, made, about(commit="abc123"), history).text
    for said in (
        "# tiny",
        "12.3 M parameters, 1.0 M of them trained: decoder, 2 blocks, width 16, 4 heads, vocabulary 31",
        "fine-tuned from `somewhere` (commit `abc123`)",
        "Data: `x.txt` (records: 1,000 test).",
        "| optimizer | adamw, learning rate 5e-05, weight decay 0 |",
        "| tokens | 3,000 |",
        "| weights kept | those of step 20, the best |",
        "| bleu | 31.5000 | 30.0000 |",
        "| loss | 1.2500 |  |",
        "![The loss over steps](curve.png)",
        "qkv generate -m THIS_FOLDER",
        "AutoModelForCausalLM.from_pretrained",
        "## Limits",
    ):
        assert said in text, said


def test_names_of_any_kind_stay_data(tmp_path: Path) -> None:
    odd = 'a "b": [c] #d\n— 漢字 😀 |x| `y`'
    made = changed(name=odd, model={"from": odd}, data={"train": "org/set:en/train", "format": "hub"})
    found = written(tmp_path, made, about(), History())
    assert found.data.base_model == odd
    assert found.data.model_name == odd
    assert found.data.datasets == ["org/set"]
    assert '# a "b": \\[c] #d — 漢字 😀 \\|x\\| \\`y\\`' in found.text


def test_a_run_from_scratch_without_figures(tmp_path: Path) -> None:
    made = changed(model={"spec": {}}, train={"steps": 1, "optimizer": "muon"})
    found = written(tmp_path, made, About(tiny_spec(), 2_000, 2_000, transformers=False), History())
    assert found.data.base_model is None
    assert found.data.eval_results is None
    assert "trained from scratch" in found.text
    assert "2.0 K parameters: decoder" in found.text
    assert "matrices 0.02" in found.text
    assert "Figures" not in found.text
    assert "qkv reads it" in found.text


HEADS = {
    "classify": (spec.Classify(("a", "b")), "AutoModelForSequenceClassification", "qkv predict"),
    "tag": (spec.Tag(("a", "b")), "AutoModelForTokenClassification", "qkv predict"),
    "span": (spec.Span(), "AutoModelForQuestionAnswering", "qkv predict"),
    "contrast": (spec.States(), "AutoModel.from", "qkv embed"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_how_it_is_used(tmp_path: Path, kind: str) -> None:
    head, name, verb = HEADS[kind]
    what = about()
    what = replace(what, spec=replace(what.spec, head=head))
    text = written(tmp_path, changed(objective={"kind": kind}), what, History()).text
    assert name in text
    assert verb in text


def test_an_encoder_and_a_decoder() -> None:
    model = text_to_text().spec
    assert card.shape(model).startswith("encoder–decoder, 2 + 2 blocks")
    assert "AutoModelForSeq2SeqLM" in card._use(changed(objective={"kind": "seq2seq"}), About(model, 1, 1))


def test_a_figure_that_is_no_number(tmp_path: Path) -> None:
    what = replace(about(), finals={"valid": {"loss": float("nan")}})
    (result,) = written(tmp_path, recipe(), what, History()).data.eval_results
    assert result.metric_value == "nan"
