"""Every objective there is: importing this registers them."""

from qkv import spec
from qkv.errors import ConfigError
from qkv.inputs.text import Tokenizer
from qkv.train import (  # noqa: F401  (importing registers their objectives)
    answering,
    causal,
    classify,
    contrast,
    denoise,
    masking,
    recipe,
    spans,
    tagging,
    translate,
)
from qkv.train.objective import OBJECTIVES, Objective


def make(
    settings: recipe.Objective, model: spec.Model, tokenizer: Tokenizer, length: int | None, *, packed: bool = False
) -> Objective:
    """The objective of a recipe's table for a model. `length`: tokens of a sample at most (batch.length). `packed`:
    samples will be joined and cut by the order of batches. ConfigError: what is asked doesn't suit the model, the
    tokenizer or packing."""
    made = OBJECTIVES[type(settings)](settings, model, tokenizer, length)
    if packed and not made.packs:
        kind = getattr(settings, "kind", type(settings).__name__)
        raise ConfigError(f'the objective {kind!r} can\'t be packed: say batch.packing = "none"')
    made.packed = packed
    return made
