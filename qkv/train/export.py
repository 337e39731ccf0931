"""What a run leaves in its folder: a model as `qkv.load` and transformers read it, and its papers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qkv.errors import ConfigError
from qkv.model import Model, save
from qkv.train import card, curve, log, page
from qkv.train.recipe import Recipe

_ASIDE = ".leaving"


def holds_model(folder: Path) -> bool:
    """Whether a folder has a config.json or weights."""
    return (folder / "config.json").exists() or any(folder.glob("*.safetensors*"))


def leave(model: Model, out: Path, say: Callable[[str], None]) -> bool:
    """Write the model into the folder `out`, in place of the one that is there: each file is the old or the new one,
    config.json the last. A spec of no family has no config.json: that is told, and nothing written.
    Whether there is one now."""
    aside = out / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    try:
        save(model, aside)
    except ConfigError as error:
        say(f"no model is left beside the checkpoints: {error}")
        return False
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, out / path.name)
    aside.rmdir()
    return True


def papers(out: Path, recipe: Recipe, about: card.About, say: Callable[[str], None]) -> None:
    """The page, the curve and the card. One that can't be written is told, and ends nothing."""
    history = log.read(out)

    def picture() -> None:
        if (why := curve.png(history, out / curve.PNG, recipe.name)) is not None:
            say(why)

    for paper in (
        picture,
        lambda: page.write(out, recipe, about, history),
        lambda: card.write(out, recipe, about, history),
    ):
        try:
            paper()
        except OSError as error:
            say(f"a paper of the run can't be written: {error}")
