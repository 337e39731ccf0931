"""Every recipe of recipes/ can be read, and describes a model that there is; the page names each."""

from pathlib import Path

import pytest

from qkv import count
from qkv.families.family import find
from qkv.train.recipe import Recipe
from qkv.train.recipe_file import load

FOLDER = Path(__file__).parents[1] / "recipes"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
PARAMETERS = {"translate": (9e6, 11e6), "char-lm": (0.7e6, 0.9e6), "mlm": (1.4e6, 1.6e6), "mlm-scratch": (1.4e6, 1.6e6)}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    recipe = load(RECIPES[name])
    assert recipe.name == name
    assert recipe.data.root == str(FOLDER / "data")
    assert f"qkv train recipes/{name}.toml" in PAGE
    assert (recipe.model.config is None) == (name not in PARAMETERS)
    if recipe.model.config is not None:
        low, high = PARAMETERS[name]
        assert low < count.parameters(_shape(recipe)) < high


def _shape(recipe: Recipe):  # type: ignore[no-untyped-def]
    config = dict(recipe.model.config or {})
    vocab = {"char": 65}.get(recipe.tokenizer.train or "", 8000)
    assert recipe.tokenizer.vocab in (None, vocab)
    return find(config["model_type"]).spec({"vocab_size": vocab, **config})


def test_the_page_names_no_other_recipe() -> None:
    said = {word.removeprefix("recipes/") for word in PAGE.replace("`", " ").split() if word.startswith("recipes/")}
    assert said >= {f"{name}.toml" for name in RECIPES}
    assert all((FOLDER / one).exists() for one in said if one.endswith(".toml"))


def test_both_sides_of_the_masked_comparison_differ_in_the_weights_alone() -> None:
    taught, scratch, before = (load(RECIPES[name]) for name in ("mlm-finetune", "mlm-scratch", "mlm"))
    assert scratch.model.config == before.model.config
    for part in ("data", "objective", "batch", "train"):
        assert getattr(taught, part) == getattr(scratch, part)
