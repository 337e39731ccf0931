"""qkv: every Transformer from one block.

    m = qkv.load("smollm2")
    m(ids)                                   # logits
    m.generate("The capital of France is")   # text
    with qkv.record(m, attention=True) as tape: ...
    qkv.save(m, "folder", dequantize=True)   # what transformers loads

Names are imported when they are first used, so that `import qkv` costs nothing and needs no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import qkv.load  # noqa: F401  (its place in sys.modules is taken below)

if TYPE_CHECKING:
    from qkv import spec
    from qkv.generate.result import Generation, Piece
    from qkv.look.record import record
    from qkv.model import Model, save

__version__ = "0.1.0"
__all__ = ["Generation", "Model", "Piece", "__version__", "load", "record", "save", "spec"]

_HOME = {
    "Model": "qkv.model",
    "save": "qkv.model",
    "record": "qkv.look.record",
    "Generation": "qkv.generate.result",
    "Piece": "qkv.generate.result",
}


def __getattr__(name: str) -> Any:
    if name == "spec":
        return import_module("qkv.spec")
    if name not in _HOME:
        raise AttributeError(f"module 'qkv' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


class _Load(ModuleType):
    """The package `qkv.load`, which can also be called: Python puts a package's name where a function of the same name
    would stand, and both `qkv.load(ref)` and `qkv.load.gguf` are to work."""

    def __call__(self, ref: Any, dtype: Any = None, device: Any = None, **more: Any) -> Any:
        """`qkv.model.load`."""
        return import_module("qkv.model").load(ref, dtype, device, **more)


sys.modules["qkv.load"].__class__ = _Load
