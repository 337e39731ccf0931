"""The recipes of this repository, as benchmarks change them."""

from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "recipes"
DATA = RECIPES / "data"


def merged(*said: str) -> list[str]:
    """KEY=VALUE changes, of which the last one of a key is kept."""
    return list({one.split("=", 1)[0].strip(): one for one in said}.values())


def load(name: str, *said: str) -> Any:
    """A recipe with these changes."""
    from qkv.train import recipe_file

    return recipe_file.load(RECIPES / f"{name}.toml", merged(*said))
